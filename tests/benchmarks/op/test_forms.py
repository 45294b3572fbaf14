"""The forms of an edit that are compared do the same."""

import pytest
import torch

from benchmarks.op import forms as op_forms
from benchmarks.op.cases import Shape, make_case
from guard.ops import native, reference

pytestmark = pytest.mark.skipif(native.path() != "in C", reason=f"edits run {native.path()}")


@pytest.mark.parametrize("masked", [False, True])
def test_every_form_computes_the_edit(masked: bool) -> None:
    case = make_case(Shape(200, 5), torch.device("cpu"), torch.float32, packed=False, seed=0)
    gate, up, _ = case.inputs[0]
    edit, active = case.edits[op_forms.EDITED], case.masks[0.5] if masked else None
    expected = reference.activate_edit("silu", gate, up, edit.neurons, edit.scale, edit.lower, edit.upper, active)
    assert not torch.equal(expected, op_forms.unedited(gate, up, edit, active))
    for form in (op_forms.COMPILED | {f"{name}, eager": form for name, form in op_forms.EAGER.items()}).values():
        assert torch.equal(form(gate, up, edit, active), expected)


def test_a_ratio_is_read_for_every_form() -> None:
    case = make_case(Shape(64, 3), torch.device("cpu"), torch.float32, packed=False, seed=0)
    for read, forms in (
        (op_forms.compiled_ratios(case, True, 0.01), op_forms.COMPILED),
        (op_forms.eager_ratios(case, True, op_forms.all_but_one(64), 0.01), op_forms.EAGER),
    ):
        assert list(read) == list(forms)
        assert all(0.01 < ratio < 1000 for ratio in read.values())
