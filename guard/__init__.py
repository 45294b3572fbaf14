"""What runs inside a serving process: an edit spec, put on a model.

A name costs what torch costs when it is first used, and importing guard costs nothing, so that a command line can
import guard's light files; transformers is imported by whoever has a model of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.errors import NeuronGuardError
    from guard.hf import install
    from guard.spec.edit_spec import EditSpec

__all__ = ["EditSpec", "NeuronGuardError", "install"]
HOMES = {"EditSpec": "guard.spec.edit_spec", "NeuronGuardError": "guard.errors", "install": "guard.hf"}


def __getattr__(name: str) -> Any:
    """One of the names that guard offers, imported now."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
