"""What runs inside a serving process: an edit spec, put on a model.

Importing it costs what torch costs; transformers is imported by whoever has a model of it.
"""

from guard.errors import NeuronGuardError
from guard.hf import install
from guard.spec.edit_spec import EditSpec

__all__ = ["EditSpec", "NeuronGuardError", "install"]
