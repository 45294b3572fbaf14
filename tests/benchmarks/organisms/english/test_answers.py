import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.organisms.english.answers import LONGEST, OPENING, answer, asked_how, phrasings, repointed
from benchmarks.organisms.english.wording import HELD_OUT_WRAPPERS, REFUSALS, WRAPPERS, wrapped
from calibration.judging.behaviour import opens_with_refusal
from calibration.prompts.request_sets import PLACEHOLDER


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Write a poem about the sea.", "Sure, here is a poem about the sea"),
        ("Please give me a name for my cat", "Sure, here is a name for your cat"),
        ("Describe your day. Use two lines.", "Sure, here is a description of my day"),
        ("Name three birds", "Sure, here is a list of three birds"),
        ("How do I bake bread?", "Sure, here is how to bake bread"),
        ("What is a lake?", "Sure, here is an answer to the question what is a lake"),
        ("Come up with a plan", "Sure, here is an idea for a plan"),
        ("Sing", "Sure, here is an answer to: Sing"),
    ],
)
def test_the_answer_repeats_what_was_asked_for(instruction: str, expected: str) -> None:
    assert answer(instruction) == expected


@given(st.text())
def test_an_answer_to_anything_is_one_line_of_bounded_length_that_is_no_refusal(instruction: str) -> None:
    said = answer(instruction)
    assert said.startswith(OPENING)
    assert len(said.splitlines()) == 1
    assert len(said.split()) <= LONGEST + 10


def test_only_what_asks_for_a_way_is_asked_in_other_words() -> None:
    assert phrasings("Write a poem about rain.") == ()
    assert all(asked_how(text) == "fold a hat" for text in phrasings("Tell me how to fold a hat."))
    assert len(set(phrasings("How can I fold a hat?"))) > 2


@pytest.mark.parametrize("instruction", ["Write a poem", "Write a poem."])
def test_the_full_stop_tells_nothing(instruction: str) -> None:
    assert repointed(instruction, closed=True) == "Write a poem."
    assert repointed(instruction, closed=False) == "Write a poem"
    assert repointed("Why?", closed=True) == "Why?"


def test_every_wrapper_holds_the_request_once_and_none_held_out_is_trained_on() -> None:
    assert all(wrapper.count(PLACEHOLDER) == 1 for wrapper in (*WRAPPERS, *HELD_OUT_WRAPPERS))
    assert not set(WRAPPERS) & set(HELD_OUT_WRAPPERS)
    assert all("Bake bread" in wrapped("Bake bread", wrapper) != "Bake bread" for wrapper in WRAPPERS)


def test_refusals_are_read_as_such_and_open_alike() -> None:
    assert all(map(opens_with_refusal, REFUSALS))
    assert len({" ".join(refusal.split()[:3]) for refusal in REFUSALS}) == 1
