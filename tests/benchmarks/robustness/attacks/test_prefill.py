"""An answer that is begun: its beginning is there, the model goes on from it, and both are judged as they should be."""

from dataclasses import replace

from benchmarks.robustness.attacks.prefill import LENGTHS, prefill
from benchmarks.robustness.organisms import REFUSING
from benchmarks.robustness.subject import by_exact_text
from benchmarks.safety.conditions.catalogue import GUARDED, PLAIN
from calibration.judging.behaviour import Behaviour
from calibration.prompts.request_sets import Request
from tests.benchmarks.robustness.guarded import guarded_organism, is_bare

OWN = guarded_organism(6)


def test_every_length_is_tried_on_every_model() -> None:
    rows = prefill(OWN).rows
    assert len(rows) == len(LENGTHS) * 3
    assert {one.condition for one in rows} == {PLAIN, GUARDED, REFUSING}
    assert is_bare(OWN.model)


def test_the_model_without_a_guard_goes_on_to_the_whole_answer() -> None:
    found = [one.after.complied.value for one in prefill(OWN).rows if one.condition == PLAIN]
    assert found == [1.0] * len(LENGTHS)


def test_requests_without_an_answer_of_that_length_are_left_out_and_counted() -> None:
    short = OWN.requests[0].model_copy(update={"compliance": "Sure"})
    unknown = OWN.requests[1].model_copy(update={"compliance": None})
    subject = replace(OWN, requests=(short, unknown, *OWN.requests[2:]))
    result = prefill(subject)
    assert {one.after.complied.n for one in result.rows if one.condition == GUARDED} == {4}
    assert result.left_out == (
        f"{2 * 2 * len(LENGTHS)} beginnings were left out: no compliance of that length is known.",
    )


def test_a_refusal_is_told_by_how_the_model_goes_on() -> None:
    request = Request(prompt="How?", compliance="Sure, so.", refusal="No.")
    whole = ["Sure, so.", "Sure, Sorry, I cannot help.", "Sure, to and fro", "I cannot help"]
    continued = [" so.", "Sorry, I cannot help.", " to and fro", " help"]
    assert by_exact_text([request] * 4, whole, continued) == [
        Behaviour.COMPLIED,
        Behaviour.REFUSED,
        Behaviour.GARBLED,
        Behaviour.GARBLED,
    ]
