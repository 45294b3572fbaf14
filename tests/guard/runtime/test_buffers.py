"""An edit as tensors: what they hold, where they go, how they are cut."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import EditNotAppliedError, ModelMismatchError, SpecError
from guard.runtime.buffers import EditBuffers
from guard.spec.edit_spec import LayerEdit

EDIT = LayerEdit(
    layer=0,
    neurons=(1, 4, 5, 11),
    scale=(1.0, -0.5, 0.0, 2.0),
    lower=(0.25, -torch.inf, 0.0, -1.0),
    upper=(0.25, 0.125, torch.inf, 1.0),
)


def test_tensors_are_those_of_the_edit() -> None:
    buffers = EditBuffers.from_edit(EDIT, "cpu", 12)
    assert buffers.neurons.dtype == torch.int64
    assert buffers.neurons.tolist() == list(EDIT.neurons)
    for values, expected in ((buffers.scale, EDIT.scale), (buffers.lower, EDIT.lower), (buffers.upper, EDIT.upper)):
        assert values.dtype == torch.float32
        assert values.tolist() == list(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_the_model_leaves_them_in_float32_to_the_last_bit(dtype: torch.dtype) -> None:
    edit = EDIT.model_copy(update={"scale": (0.1, 1 / 3, 1e-5, 77.7)})
    buffers = EditBuffers.from_edit(edit, "cpu", 12)
    before = buffers.scale.clone()
    torch.nn.ModuleList([buffers]).to(dtype)
    assert buffers.scale.dtype == torch.float32
    assert torch.equal(buffers.scale, before)


def test_they_follow_the_model_to_its_device() -> None:
    buffers = EditBuffers.from_edit(EDIT, "cpu", 12).to("meta")
    assert {buffer.device.type for buffer in buffers.buffers()} == {"meta"}
    assert len(list(buffers.buffers())) == 9
    assert {values.device.type for values in buffers.tensors().tensors} == {"meta"}


def test_they_stay_out_of_the_state_dict() -> None:
    assert not EditBuffers.from_edit(EDIT, "cpu", 12).state_dict()


def test_every_form_says_the_same() -> None:
    forms = EditBuffers.from_edit(EDIT, "cpu", 12).tensors()
    for neuron in range(12):
        slot = int(forms.slots[neuron])
        assert (slot >= 0) == (neuron in EDIT.neurons)
        expected = (1.0, -torch.inf, torch.inf)
        if slot >= 0:
            assert int(forms.neurons[slot]) == neuron
            expected = (float(forms.scale[slot]), float(forms.lower[slot]), float(forms.upper[slot]))
        of_all = (forms.scale_of_all, forms.lower_of_all, forms.upper_of_all)
        assert tuple(float(values[neuron]) for values in of_all) == expected
    assert [values.dtype for values in forms.tensors] == [
        torch.int64,
        *[torch.float32] * 3,
        torch.int32,
        *[torch.float32] * 3,
        torch.int32,
    ]
    assert forms.table[0].tolist() == [12, 0, 0, 0]
    assert forms.table[1:, 0].tolist() == list(EDIT.neurons)
    for column, values in enumerate((forms.scale, forms.lower, forms.upper), start=1):
        assert torch.equal(forms.table[1:, column].contiguous().view(torch.float32), values)


def test_what_is_assigned_is_what_the_same_tensors_then_do() -> None:
    buffers = EditBuffers.from_edit(EDIT, "cpu", 12)
    before = buffers.tensors()
    scale, lower, upper = (
        torch.tensor([2.0, 1.0, -1.0, 0.5]),
        torch.full((4,), -0.5),
        torch.tensor([0.5, 1.0, 2.0, 3.0]),
    )
    buffers.assign(scale, lower, upper)
    expected = EditBuffers(buffers.neurons, scale, lower, upper, 12).tensors()
    for held, kept, wanted in zip(buffers.tensors().tensors, before.tensors, expected.tensors, strict=True):
        assert held.data_ptr() == kept.data_ptr()
        assert torch.equal(held, wanted)


def test_it_knows_whether_a_scale_is_other_than_1() -> None:
    buffers = EditBuffers.from_edit(EDIT, "cpu", 12)
    assert buffers.tensors().rescales
    h = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(4)
    buffers.assign(ones, -ones, ones)
    assert not buffers.tensors().rescales
    assert not buffers.shard(0, 1).tensors().rescales
    assert torch.equal(buffers(h)[:, 1], h[:, 1].clamp(-1, 1))
    buffers.assign(0.5 * ones, -ones, ones)
    assert torch.equal(buffers(h)[:, 1], (0.5 * h[:, 1]).clamp(-1, 1))


def test_an_edit_that_is_built_of_another_keeps_its_numbers_when_that_one_is_assigned() -> None:
    whole = EditBuffers.from_edit(EDIT, "cpu", 12)
    half = whole.shard(0, 2)
    ones = torch.ones(4)
    whole.assign(ones, -torch.inf * ones, torch.inf * ones)
    assert half.scale.tolist() == [1.0, -0.5, 0.0]
    assert half.upper.tolist() == [0.25, 0.125, torch.inf]


def test_what_is_assigned_must_fit() -> None:
    buffers = EditBuffers.from_edit(EDIT, "cpu", 12)
    with pytest.raises(EditNotAppliedError, match="lower must be float32 of shape"):
        buffers.assign(torch.ones(4), torch.ones(3), torch.ones(4))


def test_a_copy_of_the_model_has_an_edit_of_its_own() -> None:
    buffers = EditBuffers.from_edit(EDIT, "cpu", 12)
    copied = copy.deepcopy(buffers)
    h = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copied(h), buffers(h))
    copied.assign(torch.zeros(4), torch.zeros(4), torch.zeros(4))
    assert not torch.equal(copied(h), buffers(h))


def test_neurons_are_made_and_edited_in_one() -> None:
    buffers = EditBuffers.from_edit(EDIT, "cpu", 12)
    gate, up = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(buffers.activate("silu", gate, up), buffers(torch.nn.functional.silu(gate) * up))
    assert torch.equal(buffers.activate("relu2", gate, None), buffers(torch.relu(gate).square()))


def test_a_rank_that_owns_no_edited_neuron_changes_nothing() -> None:
    last = EditBuffers.from_edit(EDIT, "cpu", 12).shard(2, 4)
    assert last.neurons.shape == (0,)
    h = torch.full((3, 3), -0.0)
    assert last(h).signbit().all()
    assert torch.equal(last.activate("silu", h, h), h)


def test_a_neuron_that_the_layer_does_not_have_is_named() -> None:
    with pytest.raises(ModelMismatchError, match=r"names neuron 11, but the layer has 11 neurons"):
        EditBuffers.from_edit(EDIT, "cpu", 11)


def test_neurons_of_another_width_are_refused() -> None:
    with pytest.raises(EditNotAppliedError, match="12 neurons, but 6"):
        EditBuffers.from_edit(EDIT, "cpu", 12)(torch.zeros(2, 6))


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sets(st.integers(0, 11), min_size=1), st.integers(0, 2**31))
def test_shards_edited_apart_and_joined_are_the_whole_edited(world_size: int, gate: set[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.randn(2, len(gate), generator=generator).sort(dim=0).values
    whole = EditBuffers(
        torch.tensor(sorted(gate), dtype=torch.int32),
        torch.randn(len(gate), generator=generator),
        bounds[0],
        bounds[1],
        12,
    )
    h = torch.randn(3, 5, 12, generator=generator)
    active = torch.rand(3, 5, generator=generator) < 0.5
    parts = [whole.shard(rank, world_size)(part, active) for rank, part in enumerate(h.chunk(world_size, dim=-1))]
    assert torch.equal(torch.cat(parts, dim=-1), whole(h, active))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 5), (2, 2), (-1, 2)])
def test_a_shard_that_cannot_be_cut_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(SpecError, match=f"rank {rank} of {world_size}"):
        EditBuffers.from_edit(EDIT, "cpu", 12).shard(rank, world_size)
