"""The early harm signal: where the model tells harm first, and whether that opens the gate late.

The gate's opening is 0 as on benign requests and 1 as on harmful ones, on average over calibration pairs. Outcomes are
Y, in nats. All on held-out requests.
"""

from typing import Literal

from pydantic import Field

from guard.spec.claim import Claim, Ground, claim
from guard.spec.measures import Count, Estimate, Finite, Frozen

READS_OUT = 0.95
Direction = Literal["probe", "read"]


class Readout(Frozen):
    """How well a probe of the residual stream that leaves `layer` tells harmful from benign, at a group of tokens."""

    layer: Count
    tokens: Literal["request", "tail", "last_prompt", "response"]
    auroc: Estimate


class AgainstRandom(Frozen):
    """An effect, the mean size of random directions' of the same norms, and how far the first is above the second."""

    effect: Estimate
    random: Estimate
    beyond: Estimate


class Exchange(Frozen):
    """The component along a direction exchanged between benign and harmful runs where the stream leaves `layer`.

    `direction`: the layer's own probe, or what the gate reads. `auroc`: how well the component tells harm at the last
    prompt token. Into the reference run an effect is what that gains, into the harmful one what it loses.
    """

    layer: Count
    direction: Direction
    auroc: Estimate
    gate_into_reference: AgainstRandom
    gate_into_harmful: AgainstRandom
    outcome_into_reference: AgainstRandom
    outcome_into_harmful: AgainstRandom


class Path(Frozen):
    """What is left of the signal's exchange with all later outputs of one kind before the gate frozen."""

    frozen: Literal["nothing", "attention", "mlp", "both"]
    gate_into_reference: Estimate
    gate_into_harmful: Estimate
    outcome_into_reference: Estimate
    outcome_into_harmful: Estimate


class EditOutcome(Frozen):
    """What an edit does on held-out requests: mean Y and greedy compliance on harmful ones, refusal, KL on benign."""

    harmful_outcome: Estimate
    harmful_compliance: Estimate
    harmful_garbled: Estimate
    benign_refusal: Estimate
    benign_kl: Estimate


class Disruption(Frozen):
    """The early edit: where the component s along a direction is above the threshold, s <- threshold + factor (s -
    threshold), at the template tail and the response.
    """

    layer: Count
    direction: Direction
    threshold: Finite
    factor: Finite
    outcome: EditOutcome


class HarmSignal(Frozen):
    """Probes, exchanges, paths, and the early edit beside the gate's.

    `reads_out` is the earliest layer whose probe at the last prompt token tells harm at `READS_OUT` on validation
    requests. `layer` is where the signal that the gate reads is first there (`there`: at all), `direction` (unit,
    [d_model]) what the gate reads of the stream; both found without held-out requests. `disruption` is None where no
    variant lowers harm.
    """

    readouts: tuple[Readout, ...] = Field(min_length=1)
    reads_out: Count | None
    layer: Count
    there: bool
    direction: tuple[Finite, ...]
    exchanges: tuple[Exchange, ...] = Field(min_length=1)
    paths: tuple[Path, ...]
    without: EditOutcome
    clamp: EditOutcome
    disruption: Disruption | None

    def exchanged(self, direction: Direction) -> tuple[Exchange, ...]:
        """The exchanges along a direction, by layer."""
        return tuple(exchange for exchange in self.exchanges if exchange.direction == direction)

    @property
    def signal(self) -> Exchange:
        """The exchange of what the gate reads, at the signal's layer."""
        return next(exchange for exchange in self.exchanged("read") if exchange.layer == self.layer)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """That a signal before the gate tells harm, and opens and closes the gate beyond random directions."""
        signal = self.signal
        grounds = (
            Ground(name=f"AUROC after layer {self.layer}, less {READS_OUT}", estimate=_less(signal.auroc, READS_OUT)),
            Ground(name="opens the gate beyond random directions", estimate=signal.gate_into_reference.beyond),
            Ground(name="closes the gate beyond random directions", estimate=signal.gate_into_harmful.beyond),
        )
        return (claim("early_signal", "an early signal of harm causes the gate's activity", grounds),)


def _less(estimate: Estimate, by: float) -> Estimate:
    return Estimate(value=estimate.value - by, low=estimate.low - by, high=estimate.high - by, n=estimate.n)
