"""What must touch vLLM's own objects to find what the guard replaces in them; where it is stands in the table.

A model is looked up by the full name of its class, so that one that vLLM runs through another implementation (its
transformers backend, a multimodal wrapper, routed experts, an embedding adapter) is refused: nobody has looked at where
its neurons pass.
"""

from torch import nn

from guard.errors import UnsupportedModelError
from guard.families.table import ENTRIES, VllmLayout
from guard.ops import ActivationName

MODELS = "vllm.model_executor.models"
ACTIVATIONS = "vllm.model_executor.layers.activation"
MISSING_LAYER = "PPMissingLayer"

LAYOUTS = {f"{MODELS}.{family.vllm.model_class}": family.vllm for family in ENTRIES if family.vllm is not None}


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def layout_of(kind: type) -> VllmLayout:
    """The table's layout of a model class of vLLM; UnsupportedModelError, naming it, for one that is not in it."""
    layout = LAYOUTS.get(full_name(kind))
    if layout is None:
        supported = ", ".join(name.rpartition(".")[2] for name in LAYOUTS)
        raise UnsupportedModelError(
            f"vLLM runs this model as {full_name(kind)}, where no edit can be installed; supported: {supported}."
        )
    return layout


def owner(layer: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Parent and attribute name of the module at the dotted `path` below `layer`; UnsupportedModelError if none is."""
    parent_path, _, name = path.rpartition(".")
    try:
        parent = layer.get_submodule(parent_path)
        layer.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(f"a {type(layer).__name__} of vLLM has no module {path}: {error}.") from error
    return parent, name


def activation_name(module: nn.Module) -> ActivationName:
    """What `guard.ops` calls vLLM's activation-and-multiplication `module`; UnsupportedModelError for any other."""
    name = full_name(type(module))
    if name == f"{ACTIVATIONS}.SiluAndMul":
        return "silu"
    if name == f"{ACTIVATIONS}.GeluAndMul":
        return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
    raise UnsupportedModelError(f"the MLP's activation is a {name} of vLLM, which the guard does not know.")
