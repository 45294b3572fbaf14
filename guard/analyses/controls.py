"""Controls for position and size: what is left of an effect when neither where it sits nor how much it writes helps it.

Effects in nats: of Y for modules, of the refusal's log-probability (half of Y) for units. Norms are L2 norms of what is
written into the residual stream; an impact is the L2 norm of the change of all log-probabilities, summed over a
request's two rows and averaged over the tokens read out.
"""

from typing import Literal

from guard.spec.claim import Claim, Ground
from guard.spec.measures import Count, Estimate, Finite, Frozen

UnitGroup = Literal["early", "late", "attention", "MLP"]


class ControlledModule(Frozen):
    """One layer's output or module, patched at the tokens that line up: the mean of NIE and TNIE, and its controls.

    `equal_norm`: the patch scaled to the norm that the middle one of all modules has. `random_direction`: in place of
    the patch, random directions of its norm. `per_impact`: the effect over the `impact`, nats per unit.
    """

    layer: Count
    kind: Literal["layer", "attention", "mlp"]
    norm: Finite
    impact: Finite
    effect: Estimate
    equal_norm: Estimate
    random_direction: Estimate
    per_impact: Estimate


class ControlledUnits(Frozen):
    """The `chosen` best units of a group (half of the layers, or attention or MLPs of all), moved at every token to
    their mean on reference requests: the controlled effect and its controls. `available`: how many units the group has.
    `random_units`: as many drawn at random.
    """

    group: UnitGroup
    available: Count
    chosen: Count
    norm: Finite
    impact: Finite
    effect: Estimate
    random_units: Estimate
    random_direction: Estimate
    per_impact: Estimate


class Controls(Frozen):
    """Every layer and module with its controls, the groups of units that the claims compare, and the claims.

    `at_smaller_norm`: the differences between groups where the one that writes more is scaled down, told beside them.
    """

    modules: tuple[ControlledModule, ...]
    groups: tuple[ControlledUnits, ...]
    at_smaller_norm: tuple[Ground, ...]
    claims: tuple[Claim, ...]
