"""Two devices on a machine that has one: tensors that say where they are, and an error where devices meet.

`python -m tests.calibration.two_devices` runs what calibration does on a model whose later half lies on another device
than its first, spread by accelerate's own hooks, and prints for each how far the result is from that on one device. It
is a process of its own, since a device can be made known to torch only once, for good. Torch has no backward pass for
a device that is made known in Python: what gradients are taken of is run, and numbers made up here stand for them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

if __name__ == "__main__":  # tensors of another make cannot be inference tensors
    torch.inference_mode = torch.no_grad  # type: ignore[assignment, misc]

from calibration.analyses.gate_activity import gate_activity, opening
from calibration.analyses.harm_signal import (
    FROZEN,
    SignalRuns,
    Stretch,
    _highest,
    _logits,
    exchanged,
    what_the_gate_reads,
)
from calibration.analyses.neuron_sets import NeuronSets
from calibration.analyses.patches import joint_effects, module_effects
from calibration.analyses.unit_groups import measured_group
from calibration.analyses.units import first_of, places_of
from calibration.effects.exact.late_trace import record_trace
from calibration.effects.exact.suffix import traced_effects
from calibration.effects.mediation import all_mediators, controlled_effect, pair_effects
from calibration.effects.outcome import readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.resume import record
from calibration.search.gate import SplitBatches, prepare
from calibration.search.selection import Masks, Member, Requests, joint_outcomes, linear_effects
from calibration.search.trigger import entering_states
from guard.hf import install_edits
from guard.spec.edit import LayerEdit, Trigger
from tests.calibration.late_models import random_batch
from tests.conftest import make_tiny_model

NAME = "apart"
LAYERS, D_MODEL, D_FF = 4, 24, 37


class PlacedTensor(Tensor):
    """A tensor that says it is on a device of the name `NAME`; `held` is what it is."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "PlacedTensor":
        made: PlacedTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return on_its_device(func, args, kwargs or {})


class Devices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it there are devices of the name `NAME`, as many as anybody asks for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        asked = named.get("device")
        if any(issubclass(kind, PlacedTensor) for kind in types) or (asked and torch.device(asked).type == NAME):
            return on_its_device(func, args, named)
        return func(*args, **named)


def on_its_device(func: Any, args: Any, named: dict[str, Any]) -> Any:
    """Run an operator on what its tensors hold; RuntimeError where they are on different devices, numbers aside."""
    given = [each for each in tree_leaves((args, named)) if isinstance(each, Tensor)]
    places = {each.device for each in given if each.dim() > 0}
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if len(places) > 1 and not moves:
        raise RuntimeError(f"{func} was given tensors on {' and '.join(sorted(map(str, places)))}")
    asked = named.get("device")
    if asked is not None:
        home = torch.device(asked)
        named = named | {"device": torch.device("cpu")}
    elif func is torch.ops.aten.copy_.default:
        home = args[0].device
    else:
        home = next((each.device for each in given if each.device.type == NAME), torch.device("cpu"))
    held_args, held_named = tree_map_only(PlacedTensor, lambda each: each.held, (args, named))
    found = func(*held_args, **held_named)
    if home.type != NAME:
        return found
    wrapped = tree_map_only(Tensor, lambda each: PlacedTensor(each, home), found)
    if any(isinstance(each, PlacedTensor) for each in given):
        return return_and_correct_aliasing(func, args, named, wrapped)  # type: ignore[no-untyped-call]
    return wrapped


def place(module: nn.Module, device: str) -> None:
    """Put a module's tensors on `device`, and have accelerate bring it what it is called with."""
    for part in module.modules():
        for held in cast(tuple[dict[str, Any], ...], (part._parameters, part._buffers)):
            for name, tensor in held.items():
                if tensor is not None:
                    moved = tensor.detach().to(device)
                    held[name] = nn.Parameter(moved, requires_grad=False) if held is part._parameters else moved
    add_hook_to_module(module, AlignDevicesHook(execution_device=torch.device(device)))


def spread(model: nn.Module) -> None:
    """Put a Llama-shaped model's embedding and first half on one device, the rest on another, as `device_map` does."""
    body: Any = model.get_submodule("model")
    for first in (body.embed_tokens, body.rotary_emb):
        place(first, f"{NAME}:0")
    for index, layer in enumerate(body.layers):
        place(layer, f"{NAME}:{int(index >= LAYERS // 2 + 1)}")
    for last in (body.norm, model.get_submodule("lm_head")):
        place(last, f"{NAME}:1")
    add_hook_to_module(model, AlignDevicesHook(execution_device=torch.device(f"{NAME}:0"), io_same_device=True))


def moved(batch: Batch, device: str) -> Batch:
    names = ("input_ids", "attention_mask", "position_ids", "continuation_mask")
    return replace(batch, **{name: getattr(batch, name).to(device) for name in names})


Run = Callable[[nn.Module, Batch, Batch], Mapping[str, Tensor] | Tensor]
EDITS = tuple(
    LayerEdit(layer=layer, neurons=(1, 5, 30), scale=(0.0, 1.0, 2.0), lower=(0.0, -0.1, -1.0), upper=(0.0, 0.1, 1.0))
    for layer in (2, 3)
)
TRIGGER = Trigger(layer=0, threshold=0.0, direction=(1.0,) * D_MODEL, false_trigger_rate=0.1, calibration_size=9)


def mediation(model: nn.Module, plain: Batch, harmful: Batch) -> dict[str, Tensor]:
    found = pair_effects(model, plain, harmful, all_mediators(model))
    return {f"{each}": effects.natural_indirect for each, effects in found.items()}


def exact_effects(model: nn.Module, _: Batch, harmful: Batch) -> dict[str, Tensor]:
    trace = record_trace(model, harmful, 1, edits=EDITS)
    return {str(layer): traced_effects(trace, layer, None, torch.zeros(D_FF)) for layer in range(1, LAYERS)}


def gate(model: nn.Module, plain: Batch, harmful: Batch) -> dict[str, Tensor]:
    split = SplitBatches((harmful,), (plain,), (plain,))
    late = prepare(model, split, split)
    requests = late.calibration["harmful"].where(TRIGGER)
    members = [Member(layer=layer, neuron=3, carries="compliance", effect=0.0) for layer in (2, 3)]
    taken = Masks(late.activations.benign_mean).with_members(members)
    linear = {f"linear {layer}": effects for layer, effects in linear_effects(requests, taken).items()}
    return {"outcome": joint_outcomes(requests, taken), "low": late.activations.benign_low[3], **linear}


def controls(model: nn.Module, plain: Batch, harmful: Batch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    runs = [record(model, batch, 1) for batch in (plain, harmful)]
    group = measured_group("late", runs[1:], runs[:1], places_of((1, 2, 3), "attention", "mlp"), 4, generator)
    scaled = group.scaled(2 * group.norm, generator)
    modules = module_effects(model, plain, harmful, generator)
    return {
        "effect": group.effect, "norm": group.norm, "random": group.random_direction, "scaled": torch.stack(scaled),
        "together": joint_effects(runs[0], runs[1], "mlp", "attention"),
        **{f"{mediator}": torch.stack([of.equal_norm, of.norm, of.impact]) for mediator, of in modules.items()},
    }  # fmt: skip


def sets_of_neurons(model: nn.Module, plain: Batch, harmful: Batch) -> dict[str, Tensor]:
    sets = NeuronSets([record(model, harmful, 1)], [record(model, plain, 1)])
    order = sets.order((4, sets.count), torch.Generator().manual_seed(0))
    first_in, last_in = sets.single(order.overall[:6], order.overall[:3])
    return {"together": sets.effect(first_of(order.apart, 5)), "first in": first_in, "last in": last_in}


def signal(model: nn.Module, plain: Batch, harmful: Batch) -> dict[str, Tensor]:
    activity = gate_activity(model, EDITS)
    runs = [record(model, batch, 2) for batch in (plain, harmful)]
    scale = opening(*(activity.read(run)[1].cpu() for run in runs))
    pairs = [SignalRuns(activity, scale, *runs)]
    read = what_the_gate_reads(pairs)
    late = record(model, harmful, 3)
    (stretched,) = (logits for logits, _ in _logits(Requests([late], (None,)), Stretch(2, "read", read, 0.0, 2.0)))
    moved = {f"frozen: {frozen}": exchanged(pairs, read, frozen=frozen) for frozen in FROZEN}
    return {"read": read, "highest": _highest(late, read), "stretched": stretched, **moved}


def installed(model: nn.Module, _: Batch, harmful: Batch) -> dict[str, Tensor]:
    with install_edits(model, EDITS, TRIGGER) as guard:
        counts = guard.count()
        with counts.counting(harmful.attention_mask.bool()):
            logits = readout_logits(model, harmful)
    clipped = [[tally.tokens, tally.active, *tally.clips] for tally in counts.rows()]
    return {"logits": logits, "clips": torch.tensor(clipped)}


def edited(model: nn.Module, _: Batch, harmful: Batch) -> Tensor:
    active = harmful.attention_mask.bool()
    return controlled_effect(model, harmful, EDITS, active)


def states(model: nn.Module, _: Batch, harmful: Batch) -> dict[str, Tensor]:
    return {str(layer): found.states for layer, found in entering_states(model, [harmful], (1, 2, 3)).items()}


RUNS: dict[str, Run] = {
    "mediation": mediation,
    "exact effects": exact_effects,
    "gate": gate,
    "controls": controls,
    "sets of neurons": sets_of_neurons,
    "harm signal": signal,
    "installed guard": installed,
    "edit under trial": edited,
    "states for the trigger": states,
}
FAMILIES = ("llama", "cohere")  # one whose exact effects are packed, one whose are replicas


def difference(one: Mapping[str, Tensor] | Tensor, two: Mapping[str, Tensor] | Tensor) -> float:
    """The largest difference; infinite where the shapes are not the same."""
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        one, two = {"": one}, {"": two}  # type: ignore[dict-item]
    pairs = [(one[name].cpu(), two[name].cpu()) for name in one]
    if any(left.shape != right.shape for left, right in pairs):
        return float("inf")
    return max(float((left.detach() - right.detach()).abs().max()) if left.numel() else 0.0 for left, right in pairs)


def made_up(_: Tensor, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    """What stands for the gradients by each of `inputs`."""
    given = [inputs] if isinstance(inputs, Tensor) else inputs
    return tuple(-torch.arange(each.numel(), dtype=each.dtype).view(each.shape).to(each.device) for each in given)


def main() -> None:
    """Print the largest difference of each run on each family, as JSON."""
    found: dict[str, dict[str, float]] = {}
    whole = {family: make_tiny_model(family, layers=LAYERS, d_ff=D_FF) for family in FAMILIES}
    parts = {family: make_tiny_model(family, layers=LAYERS, d_ff=D_FF) for family in FAMILIES}
    plain, harmful = random_batch(1), random_batch(2)
    torch.autograd.grad = made_up  # type: ignore[assignment]
    alone = {
        (family, name): run(model, plain, harmful) for family, model in whole.items() for name, run in RUNS.items()
    }
    _setup_privateuseone_for_python_backend(NAME)
    torch._C._set_only_lift_cpu_tensors(True)
    with Devices():  # type: ignore[no-untyped-call]
        home = f"{NAME}:0"
        for family, model in parts.items():
            spread(model)
            for name, run in RUNS.items():
                there = run(model, moved(plain, home), moved(harmful, home))
                found.setdefault(family, {})[name] = difference(alone[family, name], there)
    print(json.dumps(found))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main()
