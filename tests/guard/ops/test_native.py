"""The edit in C: what it computes, what it leaves to torch, and that it leaves alone what is not its own."""

import gc
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from guard.errors import EditNotAppliedError
from guard.ops import EditTensors, apply_edit, native
from guard.ops.activations import ACTIVATIONS
from tests.guard.ops.cases import DTYPES, Case, bits, cases, make_case, same

pytestmark = pytest.mark.skipif(native.path() != "in C", reason=f"the edit runs {native.path()}")

silu = ACTIVATIONS["silu"].value


def applied(case: Case) -> Tensor | None:
    return native.apply_edit(case.gate, case.edit.table, case.active)


def activated(case: Case, activation: str = "silu", gated: bool = True) -> Tensor | None:
    up = case.up if gated else None
    return native.activate_edit(ACTIVATIONS[activation].value, case.gate, up, case.edit.table, case.active)


def all_are_edited(case: Case) -> bool:
    return case.neurons.shape[0] == case.gate.shape[-1]


@settings(max_examples=300)
@given(cases())
def test_the_edit_in_c_is_its_definition(case: Case) -> None:
    before = bits(case.gate).clone()
    edited = applied(case)
    assert torch.equal(bits(case.gate), before), "the input was changed"
    if all_are_edited(case):
        assert edited is None
        return
    assert edited is not None
    assert edited.is_contiguous()
    assert edited.untyped_storage().data_ptr() != case.gate.untyped_storage().data_ptr() or not edited.numel()
    assert same(edited, case.edited())
    assert torch.equal(bits(edited)[~case.touched], before[~case.touched]), "something else was changed"


@settings(max_examples=300)
@given(st.sampled_from(list(ACTIVATIONS)), cases(), st.booleans())
def test_activation_and_edit_in_c_are_their_definition(activation: str, case: Case, gated: bool) -> None:
    before = bits(case.gate).clone(), bits(case.up).clone()
    made, right = activated(case, activation, gated), case.made(activation, gated)
    assert torch.equal(bits(case.gate), before[0])
    assert torch.equal(bits(case.up), before[1]), "an input was changed"
    if made is None:
        assert all_are_edited(case) or (gated and case.gate.dtype == torch.float32 and right.isnan().any())
        return
    assert made.is_contiguous()
    assert same(made, right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_widened_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    numbers = torch.arange(2**16).to(torch.int16).view(dtype)  # wraps around: every pattern of bits
    h = torch.stack((numbers, numbers), dim=1)  # [2^16, 2], of which the second is edited
    for scale in (1.0, 0.3, -1.7, 2.0**-13, 1e3):
        one = torch.ones(1)
        edit = EditTensors.of(torch.tensor([1]), scale * one, -torch.inf * one, torch.inf * one, 2)
        edited = native.apply_edit(h, edit.table, None)
        assert edited is not None
        assert same(edited[:, 1], (numbers.float() * scale).to(dtype))
        assert torch.equal(bits(edited[:, 0]), bits(numbers))


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_few_products_are_torch_s_bit_for_bit(tokens: int) -> None:
    case = make_case((tokens, 1021), 0, torch.float32, masked=False, seed=tokens)
    made = activated(case)
    assert made is not None
    assert torch.equal(bits(made), bits(F.silu(case.gate) * case.up))


def test_long_work_is_left_to_torch_and_its_threads() -> None:
    for tokens, taken in ((2**10, True), (2**10 + 1, False)):
        case = make_case((tokens, 160), 2**7, torch.float32, seed=tokens)
        assert (applied(case) is not None) is taken
        assert same(apply_edit(case.gate, case.edit, case.active), case.edited())


def test_an_ablated_zero_keeps_its_sign_as_in_torch() -> None:
    zero = torch.zeros(1)
    edit = EditTensors.of(zero.int(), 1 + zero, zero, zero, 2)
    edited = native.apply_edit(torch.tensor([-0.0, 1.0]), edit.table, None)
    assert edited is not None
    assert edited[0].signbit() == torch.clamp(-zero, zero, zero).signbit()


CASE = make_case((3, 9), 4, torch.float32)
ONE = torch.ones(1)


class Other(Tensor):
    """A class of tensors with a mind of its own."""


@pytest.mark.parametrize(
    "h",
    [
        torch.zeros(3, 9, device="meta"),
        torch.zeros(3, 9).as_subclass(Other),
        torch.zeros(3, 9).to_sparse(),
        torch.zeros(3, 9, dtype=torch.int32),
        torch.zeros(3, 9, dtype=torch.complex64),
        torch.zeros(3, 8),
        torch.tensor(1.0),
        [0.0] * 9,
        None,
    ],
    ids=lambda h: str(getattr(h, "layout", h))[:12],
)
def test_neurons_that_it_does_not_know_are_left_to_torch(h: Any) -> None:
    table = CASE.edit.table
    assert native.apply_edit(h, table, None) is None
    assert native.activate_edit(silu, h, None, table, None) is None
    if h is not None:
        assert native.activate_edit(silu, CASE.gate, h, table, None) is None


@pytest.mark.parametrize(
    "table",
    [
        CASE.edit.table.long(),
        CASE.edit.table[:, :3],
        CASE.edit.table.T.contiguous().T,
        CASE.edit.table[:0],
        CASE.edit.table.to("meta"),
        CASE.edit.table[1],
        None,
    ],
)
def test_a_table_that_it_does_not_know_is_left_to_torch(table: Tensor) -> None:
    assert native.apply_edit(CASE.gate, table, None) is None
    assert native.activate_edit(silu, CASE.gate, CASE.up, table, None) is None


@pytest.mark.parametrize(
    "active",
    [
        torch.ones(3),
        torch.ones(4, dtype=torch.bool),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(6, dtype=torch.bool)[::2],
    ],
)
def test_a_mask_that_it_does_not_know_is_left_to_torch(active: Tensor) -> None:
    assert native.apply_edit(CASE.gate, CASE.edit.table, active) is None


def test_a_mask_with_strides_is_applied_all_the_same() -> None:
    strided = make_case((3, 9), 4, torch.float32).active
    assert strided is not None
    strided = torch.stack((strided, ~strided), dim=1)[:, 0]
    case = Case(CASE.gate, CASE.up, *CASE.parameters[:4], strided)
    assert same(apply_edit(case.gate, case.edit, strided), case.edited())


@pytest.mark.parametrize("neuron", [-1, 9, 2**31 - 1])
def test_a_neuron_that_the_layer_does_not_have_is_an_error_and_no_write(neuron: int) -> None:
    edit = CASE.edit
    table = edit.table.clone()
    table[2, 0] = neuron
    assert native.apply_edit(CASE.gate, table, None) is None
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        apply_edit(CASE.gate, edit._replace(table=table, neurons=torch.tensor([0, neuron, 3, 4])))


@pytest.mark.parametrize(("lower", "upper"), [(torch.nan, 1.0), (1.0, torch.nan)])
def test_a_bound_that_is_no_number_does_what_torch_does(lower: float, upper: float) -> None:
    edit = EditTensors.of(torch.tensor([1]), ONE, lower * ONE, upper * ONE, 9)
    assert native.apply_edit(CASE.gate, edit.table, None) is None
    assert apply_edit(CASE.gate, edit)[:, 1].isnan().all()


def test_what_does_not_fit_raises_as_without_it() -> None:
    for h, active in ((torch.zeros(3, 8), None), (CASE.gate.int(), None), (CASE.gate, torch.ones(3))):
        with pytest.raises(EditNotAppliedError):
            apply_edit(h, CASE.edit, active)
    with pytest.raises(TypeError, match="not 2 arguments"):
        native.apply_edit(CASE.gate, CASE.edit.table)  # type: ignore[call-arg]


# Who has to see what is done to a tensor: the code in C would do it unseen.


def test_an_edit_that_autograd_has_to_see_is_left_to_torch() -> None:
    gate = CASE.gate.clone().requires_grad_()
    assert native.apply_edit(gate, CASE.edit.table, None) is None
    assert native.activate_edit(silu, CASE.gate, gate, CASE.edit.table, None) is None
    with torch.no_grad():
        edited = native.apply_edit(gate, CASE.edit.table, None)
    assert edited is not None
    assert not edited.requires_grad


def test_a_traced_function_holds_the_edit() -> None:
    edit = CASE.edit

    def function(h: Tensor) -> Tensor:
        return apply_edit(h, edit)

    other = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    right = Case(other, other, *CASE.parameters[:4], None).edited()
    for traced in (make_fx(function)(CASE.gate), torch.jit.trace(function, CASE.gate)):  # type: ignore[no-untyped-call]
        assert same(traced(other), right)


def test_tangents_and_batched_tensors_are_left_to_torch() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(CASE.gate, torch.ones_like(CASE.gate))  # type: ignore[no-untyped-call]
        assert native.apply_edit(dual, CASE.edit.table, None) is None
    seen = []

    def function(h: Tensor) -> Tensor:
        seen.append(native.apply_edit(h, CASE.edit.table, None))
        return h

    torch.vmap(function)(CASE.gate)
    torch.func.grad(lambda h: function(h).sum())(CASE.gate)
    assert seen == [None, None]


# Memory and threads.


def test_no_reference_is_kept_or_lost() -> None:
    table, up = CASE.edit.table, CASE.up

    def references() -> tuple[int, ...]:
        return tuple(sys.getrefcount(thing) for thing in (table, up, CASE.gate, silu, None))

    gc.collect()
    before = references()
    for _ in range(1000):
        native.activate_edit(silu, CASE.gate, up, table, None)
        native.apply_edit(CASE.gate, table, None)
        native.activate_edit(silu, CASE.gate, 3, table, None)  # type: ignore[arg-type]
    assert all(abs(after - count) < 100 for after, count in zip(references(), before, strict=True))


@pytest.mark.parametrize("activation", [lambda _: 3, lambda _: torch.zeros(9), lambda _: torch.zeros(3, 9).double()])
def test_an_activation_that_gives_something_else_is_left_to_torch(activation: Callable[[Tensor], Tensor]) -> None:
    assert native.activate_edit(activation, CASE.gate, None, CASE.edit.table, None) is None


def test_an_error_of_the_activation_is_handed_on() -> None:
    def broken(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        native.activate_edit(broken, CASE.gate, CASE.up, CASE.edit.table, None)


def test_threads_that_edit_at_once_do_not_disturb_each_other() -> None:
    case = make_case((300, 400), 300, torch.float32, seed=2)
    right, table, wrong = case.edited(), case.edit.table, []

    def work() -> None:
        for _ in range(20):
            edited = native.apply_edit(case.gate, table, case.active)
            if edited is None or not same(edited, right):
                wrong.append(edited)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_serves_with_and_without_gradients_enabled(
    mode: Callable[[], AbstractContextManager[object]], dtype: torch.dtype
) -> None:
    case = make_case((3, 9), 4, dtype, masked=False)
    with mode():
        assert applied(case) is not None
        assert activated(case) is not None
