"""The layout of requests and continuations, against lists built by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from calibration.prompts.sequences import Batch, Example, collate, common_tail

PAD = 0
TOKEN = st.integers(1, 60)
TEXT = st.lists(TOKEN, min_size=1, max_size=6).map(tuple)
EXAMPLES = st.lists(st.builds(Example, TEXT, TEXT, TEXT), min_size=1, max_size=5)


def by_hand() -> Batch:
    """Two requests of unequal prompts and continuations, with a common last token."""
    examples = [Example((11, 12, 13), (21, 22), (31,)), Example((14, 13), (23,), (33, 34, 35))]
    return collate(examples, pad_id=PAD)


def test_prompts_end_at_one_column_and_continuations_begin_at_the_next() -> None:
    expected = [
        [11, 12, 13, 21, 22, PAD],
        [PAD, 14, 13, 23, PAD, PAD],
        [11, 12, 13, 31, PAD, PAD],
        [PAD, 14, 13, 33, 34, 35],
    ]
    assert by_hand().input_ids.tolist() == expected


def test_masks_cover_real_tokens_alone() -> None:
    batch = by_hand()
    assert batch.attention_mask.tolist() == (batch.input_ids != PAD).long().tolist()
    assert batch.continuation_mask.tolist() == (batch.input_ids[:, 3:] != PAD).tolist()


def test_the_readout_columns_are_those_before_each_continuation_token() -> None:
    batch = by_hand()
    columns = range(batch.input_ids.shape[1])[batch.readout]
    assert [column + 1 for column in columns] == [3, 4, 5]


def test_the_edited_columns_run_from_the_tail_to_the_last_one_read_out() -> None:
    examples = [Example((1, 2, 8, 9), (5, 6), (7,)), Example((3, 8, 9), (5,), (7, 7))]
    batch = collate(examples, pad_id=PAD)
    assert batch.tail == 2
    assert list(range(6)[batch.edited]) == [2, 3, 4]
    assert batch.edited.stop == batch.readout.stop


def test_reading_leaves_out_the_padding_after_a_shorter_continuation() -> None:
    batch = by_hand()
    assert batch.tail == 1
    assert batch.reading.tolist() == [
        [True, True, True],
        [True, True, False],
        [True, True, False],
        [True, True, True],
    ]


@given(EXAMPLES, st.integers(0, 4))
def test_every_row_reads_back_as_its_own_prompt_and_continuation(examples: list[Example], wider: int) -> None:
    batch = collate(examples, pad_id=PAD, prompt_width=max(len(example.prompt) for example in examples) + wider, tail=1)
    for place, example in enumerate(examples):
        for row, continuation in ((place, example.compliance), (batch.size + place, example.refusal)):
            real = batch.attention_mask[row].bool()
            assert batch.input_ids[row][real].tolist() == [*example.prompt, *continuation]
            assert batch.targets[row][batch.continuation_mask[row]].tolist() == list(continuation)


@given(EXAMPLES)
def test_positions_count_the_real_tokens_from_zero(examples: list[Example]) -> None:
    batch = collate(examples, pad_id=PAD)
    for positions, mask in zip(batch.position_ids, batch.attention_mask.bool(), strict=True):
        real = positions[mask]
        assert real.tolist() == list(range(len(real)))


def test_two_batches_of_one_width_and_tail_share_their_columns() -> None:
    plain = collate([Example((1, 9), (5, 6), (7,))], pad_id=PAD, prompt_width=4, tail=1)
    wrapped = collate([Example((1, 2, 3, 9), (5, 6), (7,))], pad_id=PAD, prompt_width=4, tail=1)
    assert plain.targets.tolist() == wrapped.targets.tolist()
    assert (plain.readout, plain.edited) == (wrapped.readout, wrapped.edited)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=2, max_size=5))
def test_the_common_tail_is_the_longest_ending_that_all_prompts_share(prompts: list[list[int]]) -> None:
    shortest = min(map(len, prompts))
    shared = [n for n in range(1, shortest + 1) if len({tuple(prompt[-n:]) for prompt in prompts}) == 1]
    assert common_tail(prompts) == max(shared, default=1)


def test_one_prompt_alone_has_a_tail_of_one_token() -> None:
    assert common_tail([(3, 4, 5)]) == 1


@given(TEXT, TEXT, TEXT, st.integers(1, 8))
def test_truncation_cuts_the_continuations_and_never_the_prompt(
    prompt: tuple[int, ...], compliance: tuple[int, ...], refusal: tuple[int, ...], width: int
) -> None:
    cut = Example(prompt, compliance, refusal).truncated(width)
    assert cut == Example(prompt, compliance[:width], refusal[:width])


def test_every_tensor_is_made_on_the_device_asked_for() -> None:
    batch = collate([Example((1,), (2,), (3,))], pad_id=PAD, device="meta")
    tensors = (batch.input_ids, batch.attention_mask, batch.position_ids, batch.continuation_mask)
    assert {tensor.device for tensor in tensors} == {torch.device("meta")}
