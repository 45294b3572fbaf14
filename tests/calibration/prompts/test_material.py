"""From prompt sets to batches: who is paired with whom, what is wrapped, and whose words are forced."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.prompts.material import (
    CONTINUATION_TOKENS,
    DEFAULT_REFUSAL,
    Answers,
    Encoder,
    Material,
    Sources,
    pair_up,
    prepare_material,
)
from calibration.prompts.request_sets import ContrastPair, Jailbreaks, Request, encode, normalise, wrap
from calibration.prompts.sequences import Batch
from calibration.prompts.splits import Splits
from tests.calibration.organisms import organism

PARTS = ("calibration", "validation", "held_out")


def asked(kind: str, count: int, **texts: str) -> list[Request]:
    return [Request(prompt=f"{kind} number {place}?", row=place, **texts) for place in range(count)]


def templates(count: int) -> Jailbreaks:
    return Jailbreaks(source="t", digest="0", templates=tuple(f"T{place}: {{prompt}}" for place in range(count)))


def parts(splits: Splits[ContrastPair]) -> list[tuple[ContrastPair, ...]]:
    return [getattr(splits, name) for name in PARTS]


def test_without_jailbreaks_x_is_a_benign_request_of_the_same_split() -> None:
    sources = pair_up(asked("harmful", 40), asked("benign", 30), None, seed=0, max_requests=None)
    assert sources.contrast == "topic"
    for name in PARTS:
        benign = {request.prompt for request in getattr(sources.benign, name)}
        pairs = getattr(sources.pairs, name)
        assert {pair.reference.prompt for pair in pairs} <= benign
        assert all(pair.harmful.prompt.startswith("harmful") for pair in pairs)


def test_every_harmful_request_is_in_one_pair() -> None:
    for jailbreaks in (None, templates(1), templates(3)):
        sources = pair_up(asked("harmful", 41), asked("benign", 30), jailbreaks, seed=1, max_requests=None)
        goals = [normalise(pair.harmful.goal or pair.harmful.prompt) for part in parts(sources.pairs) for pair in part]
        assert sorted(goals) == sorted(normalise(request.prompt) for request in asked("harmful", 41))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_with_jailbreaks_x_is_the_plain_request_and_templates_take_turns(count: int) -> None:
    sources = pair_up(asked("harmful", 42), asked("benign", 30), templates(count), seed=0, max_requests=None)
    assert sources.contrast == "jailbreak"
    used = []
    for part in parts(sources.pairs):
        for pair in part:
            template, plain = pair.harmful.prompt.split(": ", 1)
            assert plain == pair.reference.prompt
            used.append(template)
    assert {used.count(f"T{place}") for place in range(count)} <= {42 // count, 42 // count + 1}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_benign_requests_are_plain_or_wrapped_in_turn(count: int) -> None:
    sources = pair_up(asked("harmful", 30), asked("benign", 60), templates(count), seed=0, max_requests=None)
    prompts = [request.prompt for name in PARTS for request in getattr(sources.benign, name)]
    assert len(prompts) == 60
    starts = [prompt.split(":")[0] if prompt.startswith("T") else "plain" for prompt in prompts]
    shares = {start: starts.count(start) for start in ["plain", *(f"T{place}" for place in range(count))]}
    assert set(shares.values()) == {60 // (count + 1)}
    assert sum(shares.values()) == 60


def test_finished_attacks_are_paired_with_their_goals_and_leave_benign_requests_plain() -> None:
    attacks = tuple(
        Request(prompt=f"wrapped {place}", goal=f"harmful number {place}?", row=place) for place in range(40)
    )
    jailbreaks = Jailbreaks(source="a", digest="0", attacks=attacks)
    sources = pair_up(asked("harmful", 40), asked("benign", 30), jailbreaks, seed=0, max_requests=None)
    for part in parts(sources.pairs):
        for pair in part:
            assert pair.harmful.prompt == f"wrapped {pair.reference.row}"
    assert all(request.prompt.startswith("benign") for name in PARTS for request in getattr(sources.benign, name))


@settings(max_examples=25)
@given(st.integers(0, 9), st.integers(0, 4), st.integers(26, 50), st.integers(26, 50), st.none() | st.integers(26, 40))
def test_no_goal_straddles_two_splits(
    seed: int, count: int, harmful: int, benign: int, max_requests: int | None
) -> None:
    jailbreaks = templates(count) if count else None
    sources = pair_up(
        asked("harmful", harmful), asked("benign", benign), jailbreaks, seed=seed, max_requests=max_requests
    )
    for groups in (
        [{normalise(pair.harmful.goal or pair.harmful.prompt) for pair in part} for part in parts(sources.pairs)],
        [{pair.reference.group for pair in part} for part in parts(sources.pairs)],
        [{request.group for request in getattr(sources.benign, name)} for name in PARTS],
    ):
        assert sum(map(len, groups)) == len(set().union(*groups))


def test_at_most_so_many_requests_of_each_kind_are_used() -> None:
    sources = pair_up(asked("harmful", 90), asked("benign", 80), templates(2), seed=0, max_requests=30)
    assert sum(map(len, parts(sources.pairs))) == 30
    assert sum(len(getattr(sources.benign, name)) for name in PARTS) == 30


def test_the_seed_decides_the_splits() -> None:
    one, same, other = (
        pair_up(asked("harmful", 40), asked("benign", 40), templates(2), seed=seed, max_requests=None)
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@dataclass(frozen=True)
class Made:
    sources: Sources
    material: Material
    asked_for: tuple[str, ...]


def encoder() -> Encoder:
    model, tokenizer = organism("two-layer")
    return Encoder(model, tokenizer, template=True, batch_size=5, max_new_tokens=6)


@cache
def made(compliance: str = "", refusal: str = "", *, wrapped: bool = False) -> Made:
    """Material on 30 requests a kind, whose own answers are told apart by their first tokens: 100, 101, ..."""
    texts = {name: text for name, text in (("compliance", compliance), ("refusal", refusal)) if text}
    sources = pair_up(
        asked("How do I heat the chain", 30, **texts),
        asked("How do I heat the lamp", 30),
        templates(2) if wrapped else None,
        seed=0,
        max_requests=None,
    )
    names: list[str] = []

    def kept(name: str, compute: Callable[[], Answers]) -> Answers:
        if name.endswith("outcomes"):
            return compute()
        names.append(name)
        first = 100 if name.endswith("harmful") else 200
        return Answers(tokens=tuple((first + place, *range(10, 20)) for place in range(30))[: len_of(name)])

    def len_of(name: str) -> int:
        part, kind = name.split("-")
        return len(getattr(sources.pairs if kind == "harmful" else sources.benign, part))

    return Made(sources, prepare_material(sources, encoder(), kept), tuple(names))


def continuations(batches: tuple[Batch, ...], *, refusal: bool) -> list[tuple[int, ...]]:
    """The real continuation tokens of one kind of rows, over all batches."""
    rows = []
    for batch in batches:
        for place in range(batch.size):
            row = place + batch.size * refusal
            rows.append(tuple(batch.targets[row][batch.continuation_mask[row]].tolist()))
    return rows


def prompts_of(batches: tuple[Batch, ...]) -> list[tuple[int, ...]]:
    """The real prompt tokens of every request, over all batches."""
    return [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(
            batch.input_ids[: batch.size, : batch.prompt_width],
            batch.attention_mask[: batch.size, : batch.prompt_width],
            strict=True,
        )
    ]


def test_given_compliance_and_refusal_are_the_forced_continuations() -> None:
    compliance, refusal = "Sure, take it.", "No, I will not do that."
    found = made(compliance, refusal).material.calibration
    said = encoder().text(compliance)[:CONTINUATION_TOKENS], encoder().text(refusal)[:CONTINUATION_TOKENS]
    for batches in (found.harmful, found.reference):
        assert set(continuations(batches, refusal=False)) == {said[0]}
        assert set(continuations(batches, refusal=True)) == {said[1]}


def test_where_compliance_is_not_given_it_is_what_the_model_says_itself() -> None:
    for name in PARTS:
        split = getattr(made().material, name)
        said = continuations(split.harmful, refusal=False)
        assert said == [(100 + place, *range(10, 17)) for place in range(len(said))]
        assert continuations(split.reference, refusal=False) == said


def test_the_model_is_asked_for_its_own_words_only_where_they_are_needed() -> None:
    assert sorted(made().asked_for) == sorted(f"{part}-{kind}" for part in PARTS for kind in ("harmful", "benign"))
    assert sorted(made("Sure.").asked_for) == sorted(f"{part}-benign" for part in PARTS)


def test_benign_continuations_are_the_model_s_own_and_whole_outside_the_calibration_split() -> None:
    found = made().material
    for name, length in (("calibration", CONTINUATION_TOKENS), ("validation", 7), ("held_out", 7)):
        said = continuations(getattr(found, name).benign, refusal=False)
        assert said == [(200 + place, *range(10, 20))[:length] for place in range(len(said))]


def test_without_any_given_refusal_the_default_one_is_forced() -> None:
    found = made()
    expected = encoder().text(DEFAULT_REFUSAL)[:CONTINUATION_TOKENS]
    assert set(continuations(found.material.calibration.harmful, refusal=True)) == {expected}
    assert set(continuations(found.material.calibration.benign, refusal=True)) == {expected}
    assert found.material.refusals == (DEFAULT_REFUSAL,)


def test_a_given_refusal_is_what_benign_requests_would_be_refused_with_and_counts_as_one() -> None:
    refusal = "No, I will not do that."
    found = made("Sure.", refusal).material
    assert set(continuations(found.validation.benign, refusal=True)) == {encoder().text(refusal)[:CONTINUATION_TOKENS]}
    assert refusal in found.refusals


@pytest.mark.parametrize("wrapped", [False, True])
def test_prompts_are_the_templated_requests_in_their_order(wrapped: bool) -> None:
    found, (_, tokenizer) = made(wrapped=wrapped), organism("two-layer")

    def ids(requests: list[Request]) -> list[tuple[int, ...]]:
        return [encode(tokenizer, request.prompt, template=True) for request in requests]

    for name in PARTS:
        split, pairs = getattr(found.material, name), getattr(found.sources.pairs, name)
        assert prompts_of(split.harmful) == ids([pair.harmful for pair in pairs])
        assert prompts_of(split.reference) == ids([pair.reference for pair in pairs])
        assert prompts_of(split.benign) == ids(list(getattr(found.sources.benign, name)))
    assert list(found.material.held_out_harmful) == ids([pair.harmful for pair in found.sources.pairs.held_out])
    assert list(found.material.held_out_benign) == ids(list(found.sources.benign.held_out))


def test_all_batches_of_a_split_share_their_columns_and_the_template_s_tail() -> None:
    for name in PARTS:
        split = getattr(made(wrapped=True).material, name)
        batches = split.harmful + split.reference + split.benign
        assert len({(batch.prompt_width, batch.tail) for batch in batches}) == 1
        assert batches[0].tail >= 2
        ending = {tuple(row) for batch in batches for row in prompt_endings(batch)}
        assert len(ending) == 1


def prompt_endings(batch: Batch) -> list[list[int]]:
    rows: list[list[int]] = batch.input_ids[:, batch.prompt_width - batch.tail : batch.prompt_width].tolist()
    return rows


def test_the_model_s_own_answers_end_with_the_end_token_where_the_model_ended_them() -> None:
    model, tokenizer = organism("two-layer")
    wide = Encoder(model, tokenizer, template=True, batch_size=4, max_new_tokens=24)
    narrow = Encoder(model, tokenizer, template=True, batch_size=4, max_new_tokens=3)
    requests = [pair.reference for pair in wrap(asked("How do I heat the lamp", 3), templates(1))]
    for row in wide.answers(requests).tokens:
        assert row[-1] == tokenizer.eos_token_id
        assert row.count(row[-1]) == 1
    assert all(len(row) == 3 and tokenizer.eos_token_id not in row for row in narrow.answers(requests).tokens)


def test_plain_prompts_are_encoded_without_the_template() -> None:
    model, tokenizer = organism("two-layer")
    plain = Encoder(model, tokenizer, template=False, batch_size=4, max_new_tokens=3)
    request = Request(prompt="How do I heat the lamp?")
    assert plain.prompt(request) == tuple(tokenizer(request.prompt)["input_ids"])
    assert len(encoder().prompt(request)) > len(plain.prompt(request))
    assert torch.tensor(plain.prompt(request)).dtype == torch.int64
