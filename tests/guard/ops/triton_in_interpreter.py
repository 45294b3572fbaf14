"""The Triton kernel on this processor, by Triton's interpreter; run by test_triton_kernel.py in a process of its own.

float32 and float16 alone: the interpreter's bfloat16 is not right.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from guard.ops import EditTensors, reference, triton_kernel
from tests.guard.ops.cases import ACTIVATIONS, LAYOUTS, Case, bits, cases, make_case, same

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of exp(-x) = inf
drawn = cases(dtypes=(torch.float16, torch.float32), largest=140)


def is_close(made: Tensor, case: Case, activation: str, gated: bool) -> bool:
    """Whether `made` is the definition's result but for the last bits of the activation, which `up` and scale carry on.

    The activation's error is relative to itself, or where it is all but 0 to its largest part: exp and erf are near 1.
    """
    expected = case.made(activation, gated).double()
    carried = case.up.double().abs() if gated else torch.ones(case.gate.shape, dtype=torch.double)
    carried[..., case.neurons.long()] *= case.scale.double().abs().clamp(min=1.0)
    unit = torch.finfo(made.dtype)
    allowed = 4 * unit.eps * (expected.abs() + 4 * unit.smallest_normal) + 1e-6 * carried
    found = made.double()
    right = (found == expected) | (found.isnan() & expected.isnan()) | ((found - expected).abs() <= allowed)
    if activation == "gelu":  # torch's own gelu(inf) in float32 is inf for one neuron and NaN for two
        right |= case.gate.isinf()
    return bool(right.all())


@settings(max_examples=40, deadline=None)
@given(drawn)
def test_the_edit_is_its_definition(case: Case) -> None:
    before = bits(case.gate).clone()
    edited = triton_kernel.edit_neurons(case.gate, case.edit, case.active)
    assert edited.is_contiguous()
    assert same(edited, case.edited())
    assert torch.equal(bits(edited)[~case.touched], before[~case.touched])
    assert torch.equal(bits(case.gate), before), "the input was changed"


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ACTIVATIONS), drawn, st.booleans())
def test_activation_and_edit_in_one_are_their_definition(activation: str, case: Case, gated: bool) -> None:
    made = triton_kernel.activate_edit(activation, case.gate, case.up if gated else None, case.edit, case.active)
    assert made.is_contiguous()
    assert is_close(made, case, activation, gated)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ACTIVATIONS), drawn)
def test_what_is_not_edited_is_what_an_empty_edit_gives_bit_for_bit(activation: str, case: Case) -> None:
    none = make_case(tuple(case.gate.shape), 0, case.gate.dtype).edit
    made = triton_kernel.activate_edit(activation, case.gate, case.up, case.edit, case.active)
    plain = triton_kernel.activate_edit(activation, case.gate, case.up, none, None)
    assert torch.equal(bits(made)[~case.touched], bits(plain)[~case.touched])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 4, 5, 128, 129, 150])
def test_every_tile_size_gives_the_same(rows: int, dtype: torch.dtype) -> None:
    case = make_case((rows, 270), 6, dtype, layout="packed", seed=rows)
    made = triton_kernel.activate_edit("relu", case.gate, case.up, case.edit, case.active)
    assert same(made, case.made("relu"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_right(layout: str) -> None:
    case = make_case((2, 3, 270), 40, torch.float32, layout=layout, seed=1)
    made = triton_kernel.activate_edit("relu", case.gate, case.up, case.edit, case.active)
    assert same(made, case.made("relu"))


def test_the_activation_is_rounded_before_the_product() -> None:
    generator = torch.Generator().manual_seed(2)
    gate, up = (torch.randn(300, 256, generator=generator).half() for _ in range(2))
    none = make_case((256,), 0, torch.float16).edit
    made = triton_kernel.activate_edit("silu", gate, up, none, None)
    twice = reference.activate("silu", gate, up)
    once = (torch.nn.functional.silu(gate.float()) * up.float()).half()
    assert (made != twice).double().mean() < 1e-3
    assert (made != once).double().mean() > 0.1


def test_a_tile_without_an_edited_neuron_or_an_active_row_reads_no_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    load = interpreter_builder.create_masked_load

    def counted(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return load(*arguments)

    monkeypatch.setattr(interpreter_builder, "create_masked_load", counted)
    rows, d_ff = 129, 512  # 9 tiles by 2
    one = torch.ones(1)
    edit = EditTensors.of(torch.tensor([300]), one, -one, one, d_ff)
    active = torch.zeros(rows, dtype=torch.bool)
    active[20] = True
    found = []
    for mask in (None, active, torch.zeros_like(active)):
        reads = 0
        triton_kernel.edit_neurons(torch.ones(rows, d_ff), edit, mask)
        found.append(reads - 18 * (2 if mask is None else 3))  # neurons, slots, and the mask where there is one
    assert found == [9 * 3, 1 * 3, 0]


def test_offsets_beyond_31_bits_are_right() -> None:
    # three rows, 2**30 elements apart: memory that is asked for and, but for the rows, never touched
    try:
        storage = torch.empty(2**31 + 64, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("this machine does not promise 4 GB of memory")
    gate = storage.as_strided((3, 64), (2**30, 1))
    case = make_case((3, 64), 5, torch.float16, seed=3)
    gate.copy_(case.gate)
    assert same(triton_kernel.edit_neurons(gate, case.edit, case.active), case.edited())
