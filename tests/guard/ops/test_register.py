"""What torch itself asks of an operator, and what the operators ask of their arguments."""

from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import EditNotAppliedError
from guard.ops import EditTensors, activate_edit, apply_edit, edit_neurons
from tests.guard.ops.cases import ACTIVATIONS, Case, make_case, same

EDIT = torch.ops.neuron_guard.edit_neurons.default
ACTIVATE = torch.ops.neuron_guard.activate_edit.default


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_accepts_the_edit(masked: bool, requires_grad: bool) -> None:
    case = make_case((2, 3, 9), 4, torch.float32, masked=masked, layout="transposed", seed=7)
    torch.library.opcheck(EDIT, (case.gate.requires_grad_(requires_grad), case.edit.tensors, case.active))


@pytest.mark.parametrize(
    ("activation", "requires_grad"), [("silu", False), *((activation, True) for activation in ACTIVATIONS)]
)
def test_torch_accepts_activation_and_edit_in_one(activation: str, requires_grad: bool) -> None:
    case = make_case((2, 3, 9), 4, torch.float32, layout="packed", seed=8)
    gate, up = (values.clone().requires_grad_(requires_grad) for values in (case.gate, case.up))
    torch.library.opcheck(ACTIVATE, (activation, gate, up, case.edit.tensors, case.active))
    torch.library.opcheck(ACTIVATE, (activation, gate, None, case.edit.tensors, None))


def test_torch_accepts_them_for_no_tokens_and_no_neurons() -> None:
    for shape, k in (((0, 9), 4), ((2, 9), 0)):
        case = make_case(shape, k, torch.bfloat16)
        torch.library.opcheck(EDIT, (case.gate, case.edit.tensors, case.active))
        torch.library.opcheck(ACTIVATE, ("silu", case.gate, case.up, case.edit.tensors, case.active))


@pytest.mark.parametrize("name", ["edit_neurons", "activate_edit"])
@pytest.mark.parametrize("key", ["CPU", "CUDA", "MPS", "XPU"])
def test_every_device_has_a_kernel(name: str, key: str) -> None:
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"neuron_guard::{name}", key)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built for CUDA")  # type: ignore[no-untyped-call]
@pytest.mark.parametrize("name", ["edit_neurons", "activate_edit"])
def test_without_cuda_nothing_is_registered_for_it_beside_the_generic_kernel(name: str) -> None:
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"neuron_guard::{name}", "CUDA")


def test_autocast_leaves_them_alone() -> None:
    case = make_case((4, 13), 5, torch.float32, seed=8)
    plain = apply_edit(case.gate, case.edit), activate_edit("silu", case.gate, case.up, case.edit)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = apply_edit(case.gate, case.edit), activate_edit("silu", case.gate, case.up, case.edit)
    assert same(cast[0], plain[0])
    assert same(cast[1], plain[1])


CASE = make_case((2, 3, 9), 4, torch.float32)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"h": torch.zeros(2, 3, 9, dtype=torch.int32)}, "neurons must be"),
        ({"h": torch.tensor(1.0)}, "neurons must be"),
        ({"neurons": torch.zeros(4, dtype=torch.int16)}, "the gate"),
        ({"scale": torch.zeros(4, dtype=torch.bfloat16)}, "scale"),
        ({"lower": torch.zeros(5)}, "lower"),
        ({"upper": torch.zeros(4, 1)}, "upper"),
        ({"active": torch.ones(2, 3)}, "active"),
        ({"active": torch.ones(3, 2, dtype=torch.bool)}, "active"),
        ({"active": torch.ones(2, 3, 1, dtype=torch.bool)}, "active"),
    ],
)
def test_an_argument_of_the_edit_that_does_not_fit_is_named(wrong: dict[str, Tensor], named: str) -> None:
    names = ("neurons", "scale", "lower", "upper", "active")
    arguments: dict[str, Any] = {"h": CASE.gate, **dict(zip(names, CASE.parameters, strict=True)), **wrong}
    with pytest.raises(EditNotAppliedError, match=named):
        edit_neurons(**arguments)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"activation": "swish"}, "no activation 'swish'; known are silu"),
        ({"gate": torch.zeros(2, 3, 9, dtype=torch.int32)}, "gate must be"),
        ({"up": torch.zeros(2, 3, 1)}, "up must be like gate"),
        ({"up": torch.zeros(3, 9)}, "up must be like gate"),
        ({"up": torch.zeros(2, 3, 9, dtype=torch.bfloat16)}, "up must be like gate"),
        ({"gate": torch.zeros(2, 3, 8), "up": None}, "for 9 neurons, but 8 arrive"),
        ({"active": torch.ones(6, dtype=torch.bool)}, "active"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_an_argument_of_the_fused_function_that_does_not_fit_is_named(
    wrong: dict[str, Any], named: str, compiled: bool
) -> None:
    arguments = {"activation": "silu", "gate": CASE.gate, "up": CASE.up, "edit": CASE.edit, "active": None, **wrong}
    function = torch.compile(activate_edit, backend="eager") if compiled else activate_edit
    torch._dynamo.reset()
    with pytest.raises(EditNotAppliedError, match=named):
        function(**arguments)


def with_one_tensor_less(case: Case) -> list[Tensor]:
    return case.edit.tensors[:-1]


def of_wrong_dtype(case: Case) -> list[Tensor]:
    return case.edit._replace(scale=case.scale.double()).tensors


def for_another_width(case: Case) -> list[Tensor]:
    return EditTensors.of(*case.parameters[:4], 10).tensors


@pytest.mark.parametrize("change", [with_one_tensor_less, of_wrong_dtype, for_another_width])
def test_the_operators_take_nothing_but_an_edit_for_as_many_neurons(change: Any) -> None:
    with pytest.raises(EditNotAppliedError):
        EDIT(CASE.gate, change(CASE), None)
    with pytest.raises(EditNotAppliedError):
        ACTIVATE("silu", CASE.gate, CASE.up, change(CASE), None)
