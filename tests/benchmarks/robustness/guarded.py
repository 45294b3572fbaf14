"""What these tests attack: an organism whose planted neurons its guard holds at 0."""

from functools import cache

from torch import nn

from benchmarks.robustness.organisms import OwnOrganism, own_organism
from guard.runtime.wrappers import Wrapper
from guard.spec.edit_spec import Trigger
from tests.serve.served import organism_spec

NAME = "two-layer"


@cache
def guarded_organism(count: int = 4, trigger: Trigger | None = None) -> OwnOrganism:
    """The organism with its first held-out requests; the same object each time, so nothing may be left on it."""
    return own_organism(NAME, organism_spec(trigger=trigger), seed=0, count=count)


def is_bare(model: nn.Module) -> bool:
    """Whether nothing is installed on the model and no hook is left on it."""
    return not any(
        isinstance(module, Wrapper) or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )
