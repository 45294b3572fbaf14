"""Where in a conversation the decision falls: effects by token, and how few tokens an edit needs.

Tokens are counted from the last prompt token, which is 0: those of the template tail before it are below 0, the first
response token is 1. Effects in nats of Y; a share is of the effect of the edit at every token.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from guard.spec.claim import Claim
from guard.spec.measures import Count, Estimate, Frozen

SUFFICES = 0.9


class TokenEffect(Frozen):
    """Natural indirect effects of the residual stream that leaves `layer`, patched at one token or a group of them."""

    layer: Count
    tokens: int | Literal["edited", "tail", "response"]
    natural_indirect_effect: Estimate
    total_natural_indirect_effect: Estimate


class EditedToken(Frozen):
    """The controlled effect of the gate's edit at one token alone."""

    token: int
    effect: Estimate
    share: Estimate


class WindowedEdit(Frozen):
    """The gate's edit at the last prompt token and the first `response_tokens` (None: all) response tokens.

    `everywhere`: at the whole prompt too, as it is deployed. Compliance is that of greedy answers; the KL is over
    benign answers.
    """

    response_tokens: Count | None
    everywhere: bool = False
    effect: Estimate
    share: Estimate
    harmful_compliance: Estimate
    benign_kl: Estimate


class TokenEffects(Frozen):
    """Effects by layer and token on calibration pairs; the gate's edit by token and by window on validation requests.

    Without a gate `edited` and `windows` are empty. A pair without a token, its continuations being shorter, counts as
    having no effect there, which is what patching it does.
    """

    total_effect: Estimate
    effects: tuple[TokenEffect, ...] = Field(min_length=1)
    compliance_off: Estimate | None
    edited: tuple[EditedToken, ...]
    windows: tuple[WindowedEdit, ...]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """None: a decision falls somewhere in any case."""
        return ()

    @property
    def single(self) -> tuple[TokenEffect, ...]:
        """The effects at one token."""
        return tuple(effect for effect in self.effects if isinstance(effect.tokens, int))

    @property
    def decisive(self) -> EditedToken | None:
        """The token at which the edit alone takes most; None without a gate."""
        return max(self.edited, key=lambda token: token.effect.value, default=None)

    @property
    def deployed(self) -> WindowedEdit | None:
        """The edit at every token; None without a gate."""
        return next((window for window in self.windows if window.everywhere), None)

    @property
    def enough(self) -> WindowedEdit | None:
        """The shortest window that suffices; None where only the whole conversation does.

        Its share is at least `SUFFICES` beyond the interval, and the compliance it leaves is not above the deployed
        edit's beyond both intervals.
        """
        deployed = self.deployed
        for window in self.windows:
            if deployed is None or window.everywhere:
                break
            as_good = window.harmful_compliance.low <= deployed.harmful_compliance.high
            if window.share.low >= SUFFICES and as_good:
                return window
        return None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.windows and (self.deployed is None or self.compliance_off is None or not self.edited):
            raise ValueError("windows of an edit are compared with the edit everywhere, by token, and with none")
        return self
