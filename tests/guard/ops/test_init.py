"""Every way to edit against the definition, over odd shapes, layouts, dtypes and values; and against no definition."""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guard.ops import activate_edit, apply_edit, columns, edit_neurons, native, reference, silu_mul_edit, traced
from guard.runtime.buffers import EditBuffers
from tests.guard.ops.cases import ACTIVATIONS, DTYPES, LAYOUTS, Case, bits, cases, make_case, same

EDIT = torch.ops.neuron_guard.edit_neurons.default
ACTIVATE = torch.ops.neuron_guard.activate_edit.default


def without_c(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """What `function` returns where the code in C was not built."""
    with patch.object(native, "apply_edit", lambda *_: None), patch.object(native, "activate_edit", lambda *_: None):
        return function(*arguments)


EDITS: dict[str, Callable[[Case], Tensor]] = {
    "edit_neurons": lambda case: edit_neurons(case.gate, *case.parameters),
    "apply_edit": lambda case: apply_edit(case.gate, case.edit, case.active),
    "apply_edit, without C": lambda case: without_c(apply_edit, case.gate, case.edit, case.active),
    "the operator": lambda case: EDIT(case.gate, case.edit.tensors, case.active),
    "traced, by columns": lambda case: traced.edit_columns(case.gate, case.edit, case.active),
    "traced, over all": lambda case: traced.edit_over_all(case.gate, case.edit, case.active),
}
FUSED: dict[str, Callable[[str, Case, bool], Tensor]] = {
    "activate_edit": lambda name, case, gated: activate_edit(
        name,  # type: ignore[arg-type]
        case.gate,
        case.up if gated else None,
        case.edit,
        case.active,
    ),
    "activate_edit, without C": lambda name, case, gated: without_c(
        activate_edit, name, case.gate, case.up if gated else None, case.edit, case.active
    ),
    "the operator": lambda name, case, gated: ACTIVATE(
        name, case.gate, case.up if gated else None, case.edit.tensors, case.active
    ),
    "traced": lambda name, case, gated: traced.edit_columns(
        traced.activate(name, case.gate, case.up if gated else None), case.edit, case.active
    ),
}
# Up to so many neurons the columns are moved one way, from there another.
few = st.sampled_from([columns.FEW, 0])


@pytest.mark.parametrize("way", EDITS)
@settings(max_examples=200)
@given(cases(), few)
def test_an_edit_is_its_definition(way: str, case: Case, few: int) -> None:
    before = bits(case.gate).clone()
    with patch.object(columns, "FEW", few):
        edited = EDITS[way](case)
    assert edited.is_contiguous()
    assert same(edited, case.edited())
    assert torch.equal(bits(case.gate), before), "the input was changed"
    assert torch.equal(bits(edited)[~case.touched], before[~case.touched]), "something else was changed"


@pytest.mark.parametrize("way", FUSED)
@settings(max_examples=300)
@given(st.sampled_from(ACTIVATIONS), cases(), st.booleans(), few)
def test_activation_and_edit_in_one_are_their_definition(
    way: str, activation: str, case: Case, gated: bool, few: int
) -> None:
    before = bits(case.gate).clone(), bits(case.up).clone()
    with patch.object(columns, "FEW", few):
        made = FUSED[way](activation, case, gated)
    assert made.is_contiguous()
    assert same(made, case.made(activation, gated))
    assert torch.equal(bits(case.gate), before[0])
    assert torch.equal(bits(case.up), before[1]), "an input was changed"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nothing_is_edited_it_is_the_plain_computation_bit_for_bit(dtype: torch.dtype, layout: str) -> None:
    case = make_case((4, 3, 41), 41, dtype, special=True, layout=layout, seed=3)
    nowhere = torch.zeros(4, 3, dtype=torch.bool)
    plain = F.silu(case.gate) * case.up
    assert plain[plain == 0].signbit().any(), "no -0.0: the test shows less than it says"
    assert torch.equal(bits(silu_mul_edit(case.gate, case.up, case.edit, nowhere)), bits(plain))
    assert torch.equal(bits(silu_mul_edit(case.gate, case.up, make_case((4, 3, 41), 0, dtype).edit)), bits(plain))
    assert torch.equal(bits(apply_edit(plain, case.edit, nowhere)), bits(plain))


def test_the_result_shares_nothing_with_what_it_was_made_of() -> None:
    case = make_case((2, 9), 0, torch.float32)
    for result in (apply_edit(case.gate, case.edit), activate_edit("relu", case.gate.abs(), None, case.edit)):
        assert result.untyped_storage().data_ptr() != case.gate.untyped_storage().data_ptr()


# No definition: what an edit means for the weights around it.
D_MODEL, D_FF = 6, 20


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_scaling_a_neuron_is_scaling_its_row_of_the_up_projection(activation: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x, gate, up, down = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 5, D_MODEL), (D_FF, D_MODEL), (D_FF, D_MODEL), (D_MODEL, D_FF))
    )
    neurons, scale = torch.tensor([0, 7, 19]), torch.tensor([0.5, -2.0, 0.0])
    edit = EditBuffers(neurons, scale, torch.full((3,), -torch.inf), torch.full((3,), torch.inf), D_FF)
    scaled_up = up.clone()
    scaled_up[neurons] *= scale[:, None]
    by_weights = reference.activate(activation, x @ gate.T, x @ scaled_up.T) @ down.T
    by_edit = edit.activate(activation, x @ gate.T, x @ up.T) @ down.T  # type: ignore[arg-type]
    torch.testing.assert_close(by_edit, by_weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu2", "gelu"])
def test_scaling_a_neuron_without_gate_is_scaling_its_column_of_the_down_projection(activation: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x, first, down = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 5, D_MODEL), (D_FF, D_MODEL), (D_MODEL, D_FF))
    )
    neurons, scale = torch.tensor([1, 8, 18]), torch.tensor([0.5, -2.0, 0.0])
    edit = EditBuffers(neurons, scale, torch.full((3,), -torch.inf), torch.full((3,), torch.inf), D_FF)
    scaled_down = down.clone()
    scaled_down[:, neurons] *= scale
    by_weights = reference.activate(activation, x @ first.T, None) @ scaled_down.T
    by_edit = edit.activate(activation, x @ first.T, None) @ down.T  # type: ignore[arg-type]
    torch.testing.assert_close(by_edit, by_weights, rtol=1e-12, atol=1e-12)


def test_a_bound_is_kept_to_rounding_and_tokens_that_are_not_active_pass_it() -> None:
    case = make_case((50, 12), 12, torch.bfloat16, seed=6)
    assert case.active is not None
    edited = silu_mul_edit(case.gate, case.up, case.edit, case.active)
    inside = (edited >= case.lower.bfloat16()) & (edited <= case.upper.bfloat16())
    assert inside[case.active].all()
    assert not inside[~case.active].all()
