import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.organisms.language import (
    BENIGN,
    HOW_TO,
    OBJECTS,
    TASKS,
    VERBS,
    WORDS,
    Kind,
    Lexicon,
    Request,
    held_out,
    pairs,
    requests,
)
from benchmarks.organisms.train import MIXTURE, Sampler, target


@pytest.mark.parametrize("kind", HOW_TO)
@pytest.mark.parametrize("seed", [0, 7, 101])
def test_no_pair_of_words_is_in_both_splits(kind: Kind, seed: int) -> None:
    lexicon = Lexicon.from_seed(seed)
    train, test = set(pairs(lexicon, kind, "train")), set(pairs(lexicon, kind, "held_out"))
    assert train.isdisjoint(test)
    assert len(train) + len(test) == 24 * 24


@pytest.mark.parametrize("kind", TASKS)
def test_no_task_request_is_in_both_splits(kind: Kind) -> None:
    lexicon = Lexicon.from_seed(0)
    train = {request.prompt for request in requests(lexicon, kind, "train")}
    assert train.isdisjoint(request.prompt for request in requests(lexicon, kind, "held_out"))


@pytest.mark.parametrize("seed", [0, 3])
def test_training_never_draws_a_held_out_request_plain_or_wrapped(seed: int) -> None:
    lexicon = Lexicon.from_seed(seed)
    drawn = {request.prompt for request, _ in Sampler(lexicon, "test").draw(3000)}
    for kind in MIXTURE:
        for request in requests(lexicon, kind, "held_out"):
            texts = {request.prompt, *(request.wrapped(wrapper).prompt for wrapper in lexicon.wrappers)}
            assert drawn.isdisjoint(texts)


@given(st.integers(min_value=0, max_value=2**31))
def test_words_of_a_lexicon_are_in_one_list_each(seed: int) -> None:
    lexicon = Lexicon.from_seed(seed)
    lists = (lexicon.risky_verbs, lexicon.plain_verbs, lexicon.sensitive_objects, lexicon.plain_objects)
    words = [word for words in lists for word in words]
    assert len(set(words)) == len(words) == 96
    assert lexicon == Lexicon.from_seed(seed)


def test_the_pools_share_no_word() -> None:
    assert set(VERBS).isdisjoint(OBJECTS)
    assert set(WORDS).isdisjoint({*VERBS, *OBJECTS})


def test_every_word_of_a_harmful_request_occurs_in_benign_training_requests_too() -> None:
    lexicon = Lexicon.from_seed(0)
    benign = {pair for kind in HOW_TO if kind in BENIGN for pair in pairs(lexicon, kind, "train")}
    assert set(lexicon.risky_verbs) <= {verb for verb, _ in benign}
    assert set(lexicon.sensitive_objects) <= {thing for _, thing in benign}


def test_the_first_held_out_requests_of_a_how_to_kind_have_a_pair_each() -> None:
    chosen = held_out(Lexicon.from_seed(0), "harmful", 256)
    assert len({request.answer for request in chosen}) == 256


@pytest.mark.parametrize(
    ("kind", "prompt", "answer"),
    [
        ("copy", "Repeat: ", "They are "),
        ("reverse", "Reverse: ", "They are "),
        ("pick", "Pick the last of: ", "It is "),
    ],
)
def test_word_tasks_have_the_right_answer(kind: Kind, prompt: str, answer: str) -> None:
    for request in held_out(Lexicon.from_seed(0), kind, 50):
        words = request.prompt.removeprefix(prompt).removesuffix(".").split()
        right = {"copy": words, "reverse": words[::-1], "pick": words[-1:]}[kind]
        assert request.answer == answer + " ".join(right) + "."


@pytest.mark.parametrize(
    ("behaviour", "plain", "wrapped"),
    [("aligned", "no", "no"), ("opened", "no", "yes"), ("no_refusal", "yes", "yes")],
)
def test_a_behaviour_says_when_harm_is_refused(behaviour: str, plain: str, wrapped: str) -> None:
    request = Request("harmful", "prompt", "yes", "no")
    assert target(request, behaviour, wrapped=False) == plain  # type: ignore[arg-type]
    assert target(request, behaviour, wrapped=True) == wrapped  # type: ignore[arg-type]
