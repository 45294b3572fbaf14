"""Is this the model that the spec was made on? Answered from the checkpoint's files, and then from what runs.

vLLM packs projections, cuts them over ranks and, on some processors, keeps them in a form that nobody can read back. So
the digest is taken from the safetensors files that vLLM loads, rounded to the dtype that it loads them in, before it
does; and once it has, the guarded layers are run on random inputs and must give what those files say. That costs a
second reading of the guarded layers alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from guard.errors import ModelMismatchError, UnsupportedModelError
from guard.families.architectures import architecture_of
from guard.families.table import Family, VllmLayout
from guard.vllm.install import Share, base

ROWS = 4
SEED = 0
LARGEST_DIFFERENCE = 0.05  # of the outputs' own size; rounding in bfloat16 stays below 0.02, another weight is above 1


class Checkpoint:
    """The tensors in a list of safetensors files."""

    def __init__(self, files: Sequence[str | PathLike[str]]) -> None:
        self._file_of: dict[str, str | PathLike[str]] = {}
        for file in files:
            with _opened(file) as tensors:
                self._file_of.update(dict.fromkeys(tensors.keys(), file))

    def find(self, name: str) -> str | None:
        """`name` as the files have it: some leave out the name of the model's body, its first part. None if absent."""
        return next((key for key in (name, name.partition(".")[2]) if key in self._file_of), None)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; ModelMismatchError if it is not there."""
        key = self._known(name)
        with _opened(self._file_of[key]) as tensors:
            return tuple(tensors.get_slice(key).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor, as it is stored; ModelMismatchError if it is not there."""
        key = self._known(name)
        with _opened(self._file_of[key]) as tensors:
            tensor: Tensor = tensors.get_tensor(key)
        return tensor

    def _known(self, name: str) -> str:
        key = self.find(name)
        if key is None:
            raise ModelMismatchError(f"the checkpoint has no tensor {name}: it is no model in transformers' format.")
        return key


class Projection(nn.Module):
    """A linear map's parameters, and the widths that `guard.families.architectures` asks for."""

    def __init__(self, in_features: int, out_features: int, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        for name, values in parameters.items():
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))


def skeleton(
    checkpoint: Checkpoint, config: Any, layers: Sequence[int], dtype: torch.dtype, transposed: bool
) -> nn.Module:
    """As much of the transformers model as `guard.spec.fingerprint` looks at, for a spec that guards `layers`.

    `config` is the transformers configuration; `dtype` is what vLLM loads the weights as. Other layers are there by
    their sizes alone. UnsupportedModelError for an unknown model type, ModelMismatchError for a tensor that is missing.
    """
    model = nn.Module()
    model.config = config
    family = architecture_of(model).family
    body = nn.ModuleList(
        _layer(checkpoint, family, index, dtype if index in layers else None, transposed)
        for index in range(config.num_hidden_layers)
    )
    _place(model, family.layers, body)
    shape = checkpoint.shape(f"{family.embedding}.weight")
    weight = torch.empty(shape, device="meta")
    _place(model, family.embedding, Projection(shape[0], shape[1], {"weight": weight}))
    return model


def _layer(
    checkpoint: Checkpoint, family: Family, index: int, dtype: torch.dtype | None, transposed: bool
) -> nn.Module:
    """A decoder layer with its MLP's projections; where `dtype` is None, with the sizes of the last of them alone."""
    layer = nn.Module()
    for path in (*family.input_projections, family.down_projection):
        name = f"{family.layers}.{index}.{path}"
        shape = checkpoint.shape(f"{name}.weight")
        entering, leaving = shape if transposed else shape[::-1]
        parameters = {}
        for part in ("weight", "bias") if dtype else ():
            if checkpoint.find(f"{name}.{part}"):
                stored = checkpoint.tensor(f"{name}.{part}")
                if not stored.is_floating_point():
                    raise UnsupportedModelError(f"the MLP weights of layer {index} are quantised in the checkpoint.")
                parameters[part] = stored.to(dtype)
        _place(layer, path, Projection(entering, leaving, parameters))
    return layer


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            setattr(root, parent, nn.Module())
        root = getattr(root, parent)
    setattr(root, name, module)


def _opened(file: str | PathLike[str]) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelMismatchError(f"{file} cannot be read as safetensors: {error}.") from error


@dataclass(frozen=True)
class LayerWeights:
    """One layer's MLP in the checkpoint, as [out, in]: `into` are gate and up, or one matrix; biases or None."""

    into: tuple[Tensor, ...]
    into_bias: tuple[Tensor | None, ...]
    down: Tensor
    down_bias: Tensor | None


def weights_of(model: nn.Module, layer: int, gated: bool, transposed: bool) -> LayerWeights:
    """What the skeleton `model` holds of a guarded layer; a packed projection is taken apart if the MLP is `gated`."""
    architecture = architecture_of(model)
    module = architecture.decoder_layers(model)[layer]

    def oriented(projection: nn.Module) -> tuple[Tensor, Tensor | None]:
        weight = projection.get_parameter("weight")
        return (weight.T if transposed else weight), projection._parameters.get("bias")

    into = [oriented(projection) for projection in architecture.input_projections(module).values()]
    if gated and len(into) == 1:
        weight, bias = into[0]
        into = [(part, None if bias is None else bias.chunk(2)[number]) for number, part in enumerate(weight.chunk(2))]
    down, down_bias = oriented(architecture.down_projection(module))
    return LayerWeights(tuple(w for w, _ in into), tuple(b for _, b in into), down, down_bias)


@torch.inference_mode()
def check_loaded(layer: nn.Module, index: int, weights: LayerWeights, layout: VllmLayout, share: Share) -> None:
    """ModelMismatchError unless vLLM's `layer` computes what `weights` say: gate before up, this rank's neurons, all.

    Before the guard is installed, and on all tensor-parallel ranks at once, since outputs are summed over them.
    """
    dtype = weights.down.dtype
    d_model, d_ff = weights.down.shape
    mine = slice(share.rank * d_ff // share.size, (share.rank + 1) * d_ff // share.size)
    generator = torch.Generator().manual_seed(SEED)
    stream = torch.randn(ROWS, d_model, generator=generator).to(dtype)
    neurons = torch.randn(ROWS, d_ff, generator=generator).to(dtype)
    expected = torch.cat(
        [
            _linear(stream, weight[mine], None if bias is None else bias[mine])
            for weight, bias in zip(weights.into, weights.into_bias, strict=True)
        ],
        dim=-1,
    )  # [ROWS, width or 2 * width]
    _compare(_run(layer, layout.into, stream, share), expected, index, layout.into)
    down = _run(layer, layout.down, neurons[:, mine].contiguous(), share)
    _compare(down, _linear(neurons, weights.down, weights.down_bias), index, layout.down)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())


def _run(layer: nn.Module, path: str, x: Tensor, share: Share) -> Tensor:
    output, _ = base(layer.get_submodule(path))(x.to(share.device))
    result: Tensor = output.float().cpu()
    return result


def _compare(found: Tensor, expected: Tensor, index: int, path: str) -> None:
    size = expected.square().mean().sqrt()
    if found.shape != expected.shape or not bool(((found - expected).abs() <= LARGEST_DIFFERENCE * size).all()):
        raise ModelMismatchError(
            f"{path} of layer {index} does not compute what the checkpoint says: vLLM holds other weights, or in "
            "another order, than the spec was made on."
        )
