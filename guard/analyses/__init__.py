"""What a calibration measured beyond the verdict: how far each claim about the gate stands up.

Each analysis is a frozen model of its own, in the file named for it, and is None where it was not made. This module has
them as one part of the evidence; it adds nothing to what a serving process does.
"""

from guard.analyses.concentration import Concentration
from guard.analyses.controls import Controls
from guard.analyses.harm_signal import HarmSignal
from guard.analyses.shards import Shards
from guard.analyses.specificity import Specificity
from guard.analyses.token_effects import TokenEffects
from guard.spec.claim import Claim, Ground, claim
from guard.spec.measures import Growing

__all__ = [
    "Analyses",
    "Claim",
    "Concentration",
    "Controls",
    "Ground",
    "HarmSignal",
    "Shards",
    "Specificity",
    "TokenEffects",
    "claim",
]


class Analyses(Growing):
    """The analyses that were made, each under its name."""

    controls: Controls | None = None
    concentration: Concentration | None = None
    specificity: Specificity | None = None
    harm_signal: HarmSignal | None = None
    token_effects: TokenEffects | None = None
    shards: Shards | None = None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Every claim that an analysis makes, in the order of the analyses."""
        parts = (getattr(self, name) for name in type(self).model_fields)
        return tuple(found for part in parts if part is not None for found in part.claims)
