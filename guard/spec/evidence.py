"""What a spec says about how it was found and how well it works.

The evidence travels in the file, so that whoever serves a spec can see what it rests on without the calibration that
made it.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from guard.spec.claim import Claim
from guard.spec.measures import Count, Estimate, Finite, Frozen, Growing, Json, OffOn, Share


class MediatorEffect(Frozen):
    """Natural indirect effects, in nats, of a layer's output or one of its modules at a group of `tokens`."""

    layer: Count
    kind: Literal["layer", "attention", "mlp"]
    tokens: str
    natural_indirect_effect: Estimate
    total_natural_indirect_effect: Estimate


class NeuronEvidence(Frozen):
    """Controlled effects, in nats, of one neuron's edit: alone (`first_in`), on top of all others (`last_in`)."""

    layer: Count
    neuron: Count
    first_in: Estimate
    last_in: Estimate
    p_value: Share


class SetSize(Frozen):
    """The joint controlled effect, in nats, of the best `size` neurons."""

    size: Count
    effect: Finite


class Trial(Frozen):
    """One point of the search for bounds, measured on the validation split; outcome and KL in nats."""

    family: str
    strength: Finite
    size: Count
    harmful_outcome: Finite
    benign_kl: Finite
    chosen: bool


class LayerClips(Frozen):
    """The mean over benign requests of the share of edited values that an edit changes: a request has one value for
    each of its tokens and each edited neuron of `layer`.
    """

    layer: Count
    share: Estimate


class BenignRates(Frozen):
    """How often the guard acts on benign requests: what live traffic is compared with.

    `triggered` is the share of requests with a token on which the trigger is active, None without a trigger; `clips`
    are those of every guarded layer. Intervals are as wide as shares of [0, 1] can make them.
    """

    triggered: Estimate | None
    clips: tuple[LayerClips, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for estimate in ([] if self.triggered is None else [self.triggered]) + [clips.share for clips in self.clips]:
            if not 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0:
                raise ValueError(f"the share {estimate.value} is not between 0 and 1, or outside its interval")
        return self


class HeldOut(Growing):
    """What the guard does on requests that calibration has not seen.

    KL in nats. `random_gates` is the harmful compliance left by each random gate that the gate was compared with.
    `benign_rates` came later: specs without them are as they were, and so are their digests.
    """

    harmful_compliance: OffOn
    benign_refusal: OffOn
    harmful_garbled: OffOn
    benign_garbled: OffOn
    benign_kl: Estimate
    benign_first_token_kl: Estimate
    random_gates: tuple[Share, ...]
    benign_rates: BenignRates | None = None


class Verdict(Frozen):
    """Whether the held-out test was survived; `reasons` is what spoke against it, `margin` the fall asked for."""

    outcome: Literal["effective", "refuted"]
    reasons: tuple[str, ...]
    p_value: Share
    margin: Finite

    @model_validator(mode="after")
    def _told(self) -> Self:
        if self.outcome == "refuted" and not self.reasons:
            raise ValueError("a refuted verdict needs at least one reason")
        return self


class Analyses(Frozen):
    """What a calibration measured beyond the verdict: how far each claim about the gate stands up.

    `claims` are those of all analyses. `numbers` has what each measured as one JSON value under its name; what is in it
    only the analysis knows (calibration/analyses), and nothing that serves a spec reads it.
    """

    claims: tuple[Claim, ...]
    numbers: dict[str, Json]

    @model_validator(mode="after")
    def _each_claim_once(self) -> Self:
        names = [claim.name for claim in self.claims]
        if len(set(names)) < len(names):
            raise ValueError(f"the claim {next(name for name in names if names.count(name) > 1)!r} is made twice")
        return self


class Evidence(Growing):
    """Everything measured on the way to a spec. Outcomes and effects in nats.

    `analyses` came later, like `HeldOut.benign_rates`.
    """

    contrasts: tuple[Literal["jailbreak", "topic"], ...] = Field(min_length=1)
    outcome_harmful: Estimate
    outcome_reference: Estimate
    total_effect: Estimate
    mediators: tuple[MediatorEffect, ...]
    neurons: tuple[NeuronEvidence, ...]
    set_sizes: tuple[SetSize, ...]
    trials: tuple[Trial, ...]
    held_out: HeldOut
    verdict: Verdict
    analyses: Analyses | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.contrasts)) < len(self.contrasts):
            raise ValueError("a kind of contrast is named twice")
        compliance = self.held_out.harmful_compliance
        if self.verdict.outcome == "effective" and compliance.on.value > compliance.off.value:
            raise ValueError("the verdict is effective, but harmful compliance is higher with the guard than without")
        return self
