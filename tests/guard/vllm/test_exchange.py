"""Another spec on modules like vLLM's: what it computes, in which tensors, and which specs do not fit."""

from typing import Any

import pytest
import torch

from guard.errors import ModelMismatchError, SelfTestError, SpecError
from guard.spec.edit_spec import EditSpec, LayerEdit, Trigger
from guard.vllm.exchange import check_fits, exchanged
from guard.vllm.install import Share, install
from guard.vllm.selftest import check, check_places
from tests.guard import fake_vllm
from tests.guard.by_hand import make_trigger
from tests.guard.fake_vllm import D_FF, D_MODEL
from tests.guard.vllm.test_install import ALONE, EDITS, STREAM, by_hand, spec_of

OTHERS = (
    LayerEdit(layer=2, neurons=(0, 4), scale=(1.5, 1.0), lower=(-0.5, 1.0), upper=(0.5, 1.0)),
    LayerEdit(layer=3, neurons=(9,), scale=(1.0,), lower=(0.25,), upper=(0.25,)),
)
TRIGGER = make_trigger(D_MODEL)
TURNED = TRIGGER.model_copy(update={"direction": tuple(-entry for entry in TRIGGER.direction), "threshold": 0.1})
TRIGGERS = [(None, None), (TRIGGER, TURNED)]


def guarded(spec: EditSpec, share: Share = ALONE) -> tuple[Any, Any]:
    model = fake_vllm.LlamaForCausalLM(width=D_FF // share.size)
    return model, install(model, spec, share)


@pytest.mark.parametrize(("before", "after"), TRIGGERS)
def test_the_model_computes_the_new_edit_written_by_hand_and_the_old_one_again(
    before: Trigger | None, after: Trigger | None
) -> None:
    old, new = spec_of(trigger=before), spec_of(OTHERS, after)
    model, guard = guarded(old)
    first = model(STREAM)
    guard = exchanged(guard, new)
    torch.testing.assert_close(model(STREAM).double(), by_hand(model, OTHERS, after), rtol=1e-4, atol=1e-5)
    assert not torch.equal(model(STREAM), first), "the test shows nothing"
    check(guard, ALONE, torch.float32, [lambda: model(STREAM)])
    guard = exchanged(guard, old)
    assert torch.equal(model(STREAM), first)
    check(guard, ALONE, torch.float32, [lambda: model(STREAM)])


def test_every_number_is_written_where_the_old_one_was() -> None:
    model, guard = guarded(spec_of(trigger=TRIGGER))
    places = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    exchanged(guard, spec_of(OTHERS, TURNED))
    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == places


def test_numbers_that_are_not_the_new_spec_s_do_not_pass_its_self_test() -> None:
    _, guard = guarded(spec_of(trigger=TRIGGER))
    guard = exchanged(guard, spec_of(OTHERS, TURNED))
    check_places(guard)
    guard.layers[0].own.neurons.add_(1)
    with pytest.raises(SelfTestError, match="layer 2: the edit's neurons"):
        check_places(guard)


@pytest.mark.parametrize(
    ("held", "new", "message"),
    [
        (spec_of(), spec_of(EDITS[:1]), r"layers: \[2, 3\] in the running graphs, \[2\] in the new spec"),
        (spec_of(), spec_of(trigger=TRIGGER), "the trigger's layer: None in the running graphs, 1 in"),
        (spec_of(trigger=TRIGGER), spec_of(), "the trigger's layer: 1 in the running graphs, None in"),
        (
            spec_of(trigger=TRIGGER),
            spec_of(trigger=TRIGGER.model_copy(update={"layer": 0})),
            "the trigger's layer: 1 in the running graphs, 0 in",
        ),
        (
            spec_of(),
            spec_of((EDITS[0], LayerEdit(layer=3, neurons=(0, 1), scale=(1, 1), lower=(0, 0), upper=(0, 0)))),
            "the number of neurons in layer 3, rank 0: 1 in the running graphs, 2 in the new spec",
        ),
        (spec_of(OTHERS), spec_of(), "scales neurons of layer 3, which the old one only bounds"),
    ],
)
def test_a_spec_that_needs_other_graphs_does_not_fit(held: EditSpec, new: EditSpec, message: str) -> None:
    _, guard = guarded(held)
    with pytest.raises(SpecError, match=f"{message}.*start the server again"):
        check_fits(guard, held, new)


def test_neurons_that_move_to_another_rank_do_not_fit() -> None:
    held, new = spec_of(EDITS[1:]), spec_of(OTHERS[1:])
    for rank in (0, 1):
        _, guard = guarded(held, Share(rank, 2, torch.device("cpu"), 8))
        with pytest.raises(SpecError, match=f"layer 3, rank {rank}: {1 - rank} in the running graphs, {rank} in"):
            check_fits(guard, held, new)


def test_a_spec_of_another_model_does_not_fit() -> None:
    held = spec_of()
    _, guard = guarded(held)
    other = held.model_copy(update={"model": held.model.model_copy(update={"mlp_digest": "0" * 64})})
    with pytest.raises(ModelMismatchError, match="another model"):
        check_fits(guard, held, other)


def test_a_spec_that_fits_is_let_pass_and_changes_nothing() -> None:
    held = spec_of(trigger=TRIGGER)
    model, guard = guarded(held)
    before = model(STREAM)
    check_fits(guard, held, spec_of(OTHERS, TURNED))
    assert torch.equal(model(STREAM), before)
