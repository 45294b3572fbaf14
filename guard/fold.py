"""Write an edit into a model's own weights, where arithmetic allows, so that it costs nothing to run.

A neuron j adds h_j * w_j to the MLP's output, w_j being its column of the down projection. Scaling h_j is scaling w_j.
Holding h_j at c is a zero column and c * w_j in a bias. Nothing else can be said in weights: a clamp depends on h_j, a
trigger on the token. What this trades: a folded model cannot be switched off, and proves nothing about itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.errors import EditNotAppliedError, FoldError, ModelMismatchError
from guard.families.architectures import Architecture, architecture_of, configuration, unwrap
from guard.families.table import BiasSwitch
from guard.runtime.wrappers import Wrapper
from guard.spec.edit_spec import LayerEdit, Trigger

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Folding:
    """A layer's edit as arithmetic: column j times factor[j], and constant[j] * column j added to the bias.

    `neurons` is int64 [k], the other two float64 [k]; at most one of factor[j] and constant[j] is not 0.
    """

    layer: int
    neurons: Tensor
    factor: Tensor
    constant: Tensor


def folding_of(edit: LayerEdit) -> Folding:
    """`edit` as a change of weights; FoldError, naming the first neuron, where a neuron is clamped.

    A neuron is foldable if it has no bounds, or if its value does not depend on h: equal bounds, or a scale of 0.
    """
    scale, lower, upper = (torch.tensor(part, dtype=torch.float64) for part in (edit.scale, edit.lower, edit.upper))
    held = (lower == upper) | (scale == 0)
    clamped = ~(held | (lower.isinf() & upper.isinf()))
    if bool(clamped.any()):
        place = int(clamped.nonzero()[0])
        raise FoldError(
            f"neuron {edit.neurons[place]} of layer {edit.layer} is clamped to "
            f"[{edit.lower[place]:g}, {edit.upper[place]:g}], and only a scale without bounds or an ablation can be "
            "folded into weights; serve the spec with the guard instead."
        )
    constant = torch.where(held, torch.clamp(torch.zeros_like(scale), lower, upper), 0.0)
    return Folding(edit.layer, torch.tensor(edit.neurons), torch.where(held, 0.0, scale), constant)


def check_foldable(layers: Sequence[LayerEdit], trigger: Trigger | None = None) -> None:
    """FoldError unless `layers` with `trigger` can be said in weights, as far as can be told without the model."""
    if trigger is not None:
        raise FoldError(
            f"the edit waits for a trigger in layer {trigger.layer}, and weights act on every token; "
            "serve the spec with the guard instead, or calibrate with --trigger never."
        )
    if not layers:
        raise FoldError("the spec edits no neuron: there is nothing to fold.")
    for edit in layers:
        folding_of(edit)


@torch.no_grad()
def fold_edits(model: nn.Module, layers: Sequence[LayerEdit]) -> str | None:
    """Change the weights of `model` to those that do what `layers` do; all of it or, if something is raised, nothing.

    Computed in float64 and rounded to each weight's own dtype; an ablation to 0 is exact, and so is every weight of
    the neurons that are not edited. Where an ablation to another value needs a bias that the model lacks, its
    configuration's entry for biases is switched on, all new biases but the needed ones are 0, and the entry's name is
    returned; None elsewhere. Raises FoldError, UnsupportedModelError (unknown type), ModelMismatchError (no such layer
    or neuron) or EditNotAppliedError (a guard is installed).
    """
    architecture = architecture_of(model)
    check_foldable(layers)
    decoder_layers = architecture.decoder_layers(model)
    indices = [edit.layer for edit in layers]
    if len(set(indices)) < len(indices):
        raise FoldError(f"each layer must be named once to be folded; named are {indices}.")
    if max(indices) >= len(decoder_layers):
        raise ModelMismatchError(
            f"the edit names layers {indices}, but the model has layers 0 to {len(decoder_layers) - 1}."
        )
    changes = [_change(model, architecture, decoder_layers[edit.layer], folding_of(edit)) for edit in layers]
    entry, switch = None, architecture.family.down_bias
    if isinstance(switch, BiasSwitch) and any(change.needs_switch for change in changes):
        entry = _switch_biases_on(model, switch, decoder_layers)
    for change in changes:
        change.apply()
    return entry


@dataclass(frozen=True)
class _Change:
    """New columns (rows for Conv1D) of the down projection `down`, and its new bias [d_model], if it changes."""

    down: nn.Module
    dimension: int
    neurons: Tensor
    columns: Tensor
    bias: Tensor | None

    @property
    def needs_switch(self) -> bool:
        """Whether there is no bias yet to put the new one in."""
        return self.bias is not None and _bias_of(self.down) is None

    def apply(self) -> None:
        """Overwrite the model's own."""
        self.down.get_parameter("weight").index_copy_(self.dimension, self.neurons, self.columns)
        if self.bias is not None:
            self.down.get_parameter("bias").copy_(self.bias)


def _change(model: nn.Module, architecture: Architecture, layer: nn.Module, folding: Folding) -> _Change:
    down = architecture.down_projection(layer)
    weight = _own_weight(model, down, folding.layer)
    width, last = architecture.neurons_of(layer), int(folding.neurons[-1])
    if last >= width:
        raise ModelMismatchError(
            f"the edit of layer {folding.layer} names neuron {last}, but the layer has {width} neurons."
        )
    dimension = 1 if isinstance(down, nn.Linear) else 0  # Linear keeps [d_model, d_ff], Conv1D [d_ff, d_model]
    neurons = folding.neurons.to(weight.device)
    old = weight.index_select(dimension, neurons).double().cpu()
    old = old if dimension == 1 else old.T  # [d_model, k]
    new = torch.where(folding.factor == 0, 0.0, old * folding.factor)  # +0.0 whatever the column holds
    columns = _rounded(new if dimension == 1 else new.T, weight, folding.layer)
    if not bool(folding.constant.any()):
        return _Change(down, dimension, neurons, columns, None)
    before = _bias_of(down)
    if before is None:
        _check_bias_possible(architecture, folding)
    after = old @ folding.constant + (0.0 if before is None else before.double().cpu())  # [d_model]
    bias = _rounded(after, weight if before is None else before, folding.layer)
    return _Change(down, dimension, neurons, columns, bias)


def _own_weight(model: nn.Module, down: nn.Module, layer: int) -> Tensor:
    """The weight of a down projection, which must be a plain matrix that nothing else uses."""
    if any(isinstance(part, Wrapper) for part in model.modules()):
        raise EditNotAppliedError("a guard is installed on the model: remove that installation before folding.")
    weight = down.weight
    if not isinstance(weight, Tensor) or weight.dtype not in DTYPES or weight.dim() != 2:
        raise FoldError(
            f"the down projection of layer {layer} is quantised, and no edit can be rounded into it; fold into the "
            "checkpoint that it was made from, and quantise that."
        )
    if weight.is_meta:
        raise FoldError(f"the weights of layer {layer} are offloaded; load the model whole to fold an edit into it.")
    users = [name for name, other in model.named_parameters(remove_duplicate=False) if other is weight]
    if len(users) > 1:
        raise FoldError(
            f"the down projection of layer {layer} is shared ({', '.join(users)}), and folding would edit it "
            "everywhere; serve the spec with the guard instead."
        )
    return weight


def _check_bias_possible(architecture: Architecture, folding: Folding) -> None:
    if isinstance(architecture.family.down_bias, BiasSwitch):
        return
    first = int(folding.constant.nonzero()[0])
    raise FoldError(
        f"neuron {int(folding.neurons[first])} of layer {folding.layer} is held at {float(folding.constant[first]):g}, "
        f"which needs a bias after the down projection, and a {architecture.model_type} model cannot have one: only "
        "scales and ablations to 0 can be folded into it; serve the spec with the guard instead."
    )


def _switch_biases_on(model: nn.Module, switch: BiasSwitch, decoder_layers: Sequence[nn.Module]) -> str:
    """Give every module that has a bias under the configuration entry one of zeros, unless it has one already."""
    for layer in decoder_layers:
        for path in switch.modules:
            module = layer.get_submodule(path)
            if _bias_of(module) is None:
                weight = module.get_parameter("weight")  # [leaving, entering]
                module.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)
    setattr(configuration(unwrap(model)), switch.entry, True)
    return switch.entry


def _bias_of(module: nn.Module) -> Tensor | None:
    bias: Tensor | None = getattr(module, "bias", None)
    return bias


def _rounded(values: Tensor, like: Tensor, layer: int) -> Tensor:
    """`values` float64 in the dtype and on the device of `like`; FoldError where they overflow."""
    rounded = values.to(like.dtype).to(like.device)
    if not bool(torch.isfinite(rounded).all()):
        raise FoldError(
            f"the folded weights of layer {layer} do not fit in {str(like.dtype).removeprefix('torch.')}; "
            "serve the spec with the guard instead."
        )
    return rounded
