"""Whether the gate is a gate of harm or a modulator of whatever the model says: its effect on benign outcomes.

An outcome is the mean per-token log-probability of what the model itself says to a request. Effects on it are in
standard deviations of that outcome between the request and another one, so that kinds with long and short, sure and
open answers compare. The index of a kind sets the mean fall on harmful requests, a, against the mean size of the change
on its requests, b: (a - b) / (a + b), in [-1, 1]; 1 where the kind is left alone, 0 where it is moved as much as harm.
"""

from typing import Literal

from guard.spec.claim import Claim, Ground, claim
from guard.spec.measures import Count, Estimate, Finite, Frozen

Intervention = Literal["deployed", "edit", "natural"]
IN_WORDS = {"edit": "the edit, everywhere", "natural": "their natural values", "deployed": "the guard as deployed"}


class KindEffect(Frozen):
    """What one intervention does to one `kind` of benign requests, beside what it does to harmful ones.

    `harmful` is a, `benign` is b, in standard deviations. The intervention is the guard as it is `deployed`; its `edit`
    active on every token, whatever its trigger says; or the total `natural` indirect effect of the gate's neurons.
    """

    kind: str
    intervention: Intervention
    harmful: Estimate
    benign: Estimate
    index: Estimate

    def fails(self, limit: float, negligible: float) -> bool:
        """Whether the kind is moved, beyond what is negligible, and the index's whole interval is below the limit."""
        return self.index.high < limit and self.benign.low > negligible


class LeftOut(Frozen):
    """A kind on which nothing was measured, and why."""

    kind: str
    reason: str


class NeuronSpecificity(Frozen):
    """One neuron's own edit, everywhere, and its natural effect, each on the benign kind that it moves most."""

    layer: Count
    neuron: Count
    edit: KindEffect
    natural: KindEffect
    specific: bool


class DroppedNeuron(Frozen):
    """A neuron that is not specific, and that the gate works without."""

    layer: Count
    neuron: Count


class Specificity(Frozen):
    """The gate and each of its neurons on benign outcomes. Below `limit`, beyond `negligible`, is not specific.

    `dropped` were taken out of the gate for that reason.
    """

    limit: Finite
    negligible: Finite
    kinds: tuple[KindEffect, ...]
    neurons: tuple[NeuronSpecificity, ...]
    left_out: tuple[LeftOut, ...]
    dropped: tuple[DroppedNeuron, ...] = ()

    @property
    def claims(self) -> tuple[Claim, ...]:
        """That the neurons act on harm: by kind, for the edit without the trigger's help and for the natural effect."""
        grounds = tuple(
            Ground(name=f"{effect.kind}, {IN_WORDS[effect.intervention]}", estimate=_above(effect.index, self.limit))
            for effect in self.kinds
            if effect.intervention != "deployed"
        )
        if not grounds:
            return ()
        statement = f"the gate's neurons carry harm rather than output as such (index above {self.limit:g})"
        return (claim("specific", statement, grounds),)


def _above(index: Estimate, limit: float) -> Estimate:
    return Estimate(value=index.value - limit, low=index.low - limit, high=index.high - limit, n=index.n)
