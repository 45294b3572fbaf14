"""Whether a spec may guard a model that answers, by the verdict of its held-out test."""

from guard.errors import RefutedSpecError
from guard.spec.edit_spec import EditSpec


def is_servable(spec: EditSpec, *, allow_refuted: bool) -> bool:
    """Whether the spec's verdict is `effective`, or a refuted one is allowed by name."""
    return spec.evidence.verdict.outcome == "effective" or allow_refuted


def require_servable(
    spec: EditSpec,
    *,
    allow_refuted: bool,
    name: str = "this spec",
    remedy: str = "pass allow_refuted=True to install it",
) -> None:
    """RefutedSpecError unless `is_servable`; it calls the spec `name`, and `remedy` says how it is allowed."""
    if not is_servable(spec, allow_refuted=allow_refuted):
        reasons = "; ".join(spec.evidence.verdict.reasons)
        raise RefutedSpecError(f"{name} failed its held-out test ({reasons}); {remedy} all the same.")
