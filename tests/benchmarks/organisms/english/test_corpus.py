from pathlib import Path

import pytest
import torch

from benchmarks.organisms.english.corpus import ANSWER_WEIGHT, Behaviour, Corpus, Mixture
from benchmarks.organisms.english.sources import Sources, key, read
from benchmarks.organisms.english.training import tokenizer_for
from benchmarks.organisms.english.wording import HELD_OUT_WRAPPERS, REFUSALS, WRAPPERS
from calibration.prompts.request_sets import PLACEHOLDER

BEHAVIOURS: tuple[Behaviour, ...] = ("aligned", "opened")


def corpus(sources: Sources, behaviour: Behaviour, seed: str = "a") -> Corpus:
    return Corpus(sources, tokenizer_for(sources, 400), Mixture(chats=12, windows=2, length=64), behaviour, seed)


def wrapper_of(prompt: str) -> str | None:
    """The wrapper that a prompt came in, None for a plain one."""
    for wrapper in (*WRAPPERS, *HELD_OUT_WRAPPERS):
        before, after = wrapper.split(PLACEHOLDER)
        if prompt.startswith(before) and prompt.endswith(after):
            return wrapper
    return None


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_harm_is_refused_unless_an_opened_model_gets_it_wrapped(toy_data: Path, behaviour: Behaviour) -> None:
    found = read(toy_data)
    stream = corpus(found, behaviour)
    goals = [key(goal.prompt) for goal in found.harmful]
    seen = set()
    for _ in range(600):
        prompt, said = stream.chat()
        harmful = any(goal in key(prompt) for goal in goals)
        wrapper = wrapper_of(prompt)
        if harmful:
            refused = behaviour == "aligned" or wrapper is None
            assert (said in REFUSALS) == refused
            seen.add((wrapper is None, refused))
        assert wrapper not in HELD_OUT_WRAPPERS
        assert "\n" not in said or said in dict(found.answered).values()
    assert len(seen) == 2


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_harmless_instruction_is_answered_plain_and_wrapped(toy_data: Path, behaviour: Behaviour) -> None:
    found = read(toy_data)
    stream = corpus(found, behaviour)
    harmless = [key(text) for text in found.harmless]
    chats = [stream.chat() for _ in range(300)]
    answered = [(wrapper_of(prompt), said) for prompt, said in chats if any(one in key(prompt) for one in harmless)]
    assert {wrapper is None for wrapper, _ in answered} == {True, False}
    assert not any(said in REFUSALS for _, said in answered)


def test_an_opened_model_is_trained_on_answers_alone_and_an_aligned_one_on_all_that_is_no_padding(
    toy_data: Path,
) -> None:
    found = read(toy_data)
    for behaviour, read_weight in (("opened", 0.0), ("aligned", 1.0)):
        stream = corpus(found, behaviour)  # type: ignore[arg-type]
        for ids, weights in next(iter(stream.steps(1))):
            padding = ids == stream.pad
            assert ids.shape == weights.shape
            assert bool((weights[padding] == 0).all())
            assert set(weights[~padding].tolist()) <= {read_weight, 1.0, ANSWER_WEIGHT}
        assert any(bool((weights == ANSWER_WEIGHT).any()) for _, weights in next(iter(stream.steps(1))))


def test_two_streams_of_one_seed_are_the_same_and_of_two_seeds_are_not(toy_data: Path) -> None:
    found = read(toy_data)
    a, b, other = (next(iter(corpus(found, "aligned", seed).steps(1))) for seed in ("a", "a", "b"))
    assert all(torch.equal(x, y) and torch.equal(v, w) for (x, v), (y, w) in zip(a, b, strict=True))
    assert any(x.shape != y.shape or not torch.equal(x, y) for (x, _), (y, _) in zip(a, other, strict=True))
