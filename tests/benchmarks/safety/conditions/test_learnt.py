"""Baselines that learn: from the calibrated requests alone, and never towards harm."""

from contextlib import nullcontext
from functools import partial
from math import inf
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.judges.judge import Exchange
from benchmarks.localisation.peers import refusal_direction
from benchmarks.localisation.peers.contender import Contender, logits_under
from benchmarks.safety.conditions.condition import Calibrated, Condition
from benchmarks.safety.conditions.kept import (
    CONDITIONAL,
    CONTRAST,
    FILTER,
    KeptBaselines,
    KeptChange,
    acting,
    digest_of_lesson,
)
from benchmarks.safety.conditions.learnt import (
    LEARNT,
    NOTHING,
    budget_of,
    chosen,
    contrast_neurons,
    learnt,
)
from benchmarks.safety.conditions.requests import BaselineError, lesson
from calibration.effects.outcome import first_refusal_token, readout_logits
from calibration.prompts.request_sets import Request
from calibration.prompts.splits import SplitError
from calibration.runs.store import Store
from calibration.search.bounds import Budget
from guard.hf import install_edits
from tests.benchmarks.safety.subjects import built, calibrated, encoder, everything, lessons, logits, prompts, spec
from tests.calibration.organisms import BENIGN, HARMFUL, requests
from tests.guard.specs import PROVENANCE
from tests.serve.served import EDITS

WIDE = Budget(kl=100.0, refusal=1.0)


def test_baselines_ask_the_model_the_calibrated_requests_alone() -> None:
    assert built()[1] == {request.prompt for request in (*calibrated().harmful, *calibrated().benign)}


def test_what_is_learnt_from_and_what_is_chosen_on_share_no_request() -> None:
    learning, choosing = (
        {example.prompt for kind in (part.answered, part.refused, part.benign) for example in kind}
        for part in (lessons().learning, lessons().choosing)
    )
    assert learning
    assert choosing
    assert not learning & choosing


def test_a_refusal_direction_that_is_added_raises_the_refusals_first_token() -> None:
    learning = lessons().learning_batches
    candidates = refusal_direction.candidates(encoder().model, learning.reference, learning.benign)
    batch, taken = lessons().choosing_batches.harmful[0], chosen(lessons(), candidates, WIDE)
    with torch.inference_mode():
        plain = first_refusal_token(readout_logits(encoder().model, batch), batch)
        assert taken.strength != NOTHING.strength
        assert bool((first_refusal_token(logits_under(encoder().model, batch, taken), batch) > plain).all())


def test_what_would_let_more_harm_through_is_not_used() -> None:
    louder = [edit.model_copy(update={"scale": (1.5,) * len(edit.neurons), "lower": (-inf,) * len(edit.neurons),
                                      "upper": (inf,) * len(edit.neurons)}) for edit in EDITS]  # fmt: skip
    more = Contender("the gate opened wider", lambda: install_edits(encoder().model, louder))
    quiet = Contender("the gate at 0", lambda: install_edits(encoder().model, EDITS))
    assert chosen(lessons(), [more], WIDE).strength == NOTHING.strength
    assert chosen(lessons(), [more, quiet], WIDE).strength == quiet.strength


def test_as_many_contrast_neurons_as_the_spec_has_are_set_to_0() -> None:
    count = sum(len(edit.neurons) for edit in spec().layers)
    assert everything()[CONTRAST].words == f"{count} neurons at 0" == contrast_neurons(lessons(), count).strength


def test_the_conditional_vector_acts_where_its_condition_says_whoever_else_is_asked() -> None:
    acts = everything()[CONDITIONAL].acts
    assert acts is not None
    some = [*prompts(HARMFUL, 200, 206), *prompts(BENIGN, 300, 306)]
    together = acts(some)
    assert together == [acts([prompt])[0] for prompt in some]
    assert any(together)
    assert not all(together)


def test_a_condition_is_asked_of_every_prompt_in_order() -> None:
    long = acting(encoder(), lambda _, batch: batch.attention_mask.sum(1)[: batch.size] > 10)
    assert long([tuple(range(3, 3 + n)) for n in (4, 12, 9, 10, 30)]) == [False, True, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 255), st.booleans(), st.text(max_size=40)), min_size=1, max_size=4))
@settings(max_examples=25)
def test_the_filter_lets_an_answer_leave_as_it_is_or_as_a_refusal(asked: list[tuple[int, bool, str]]) -> None:
    rewrite = everything()[FILTER].rewrite
    assert rewrite is not None
    given = [Exchange(requests(HARMFUL if harm else BENIGN)[place].prompt, text) for place, harm, text in asked]
    for exchange, leaving in zip(given, rewrite(given), strict=True):
        assert leaving in {exchange.answer, lessons().refusal}


def test_the_filter_stops_harmful_answers_and_lets_others_pass_on_requests_that_it_has_not_seen() -> None:
    rewrite = everything()[FILTER].rewrite
    assert rewrite is not None
    unseen = {kind: requests(kind)[200:232] for kind in (HARMFUL, BENIGN)}
    complying = {kind: [Exchange(one.prompt, str(one.compliance)) for one in of] for kind, of in unseen.items()}
    stopped = {kind: sum(text == lessons().refusal for text in rewrite(of)) for kind, of in complying.items()}
    assert stopped[HARMFUL] >= 28
    assert stopped[BENIGN] <= 4


def test_an_empty_answer_passes_the_filter() -> None:
    rewrite = everything()[FILTER].rewrite
    assert rewrite is not None
    assert rewrite([Exchange(requests(HARMFUL)[0].prompt, "")]) == [""]


def test_the_budget_is_the_specs_own_where_it_tells_one() -> None:
    def told(**arguments: str) -> Budget:
        provenance = PROVENANCE.model_copy(update={"arguments": arguments})
        return budget_of(spec().model_copy(update={"provenance": provenance}))

    assert told(budget_kl="0.5", budget_refusal="0.25") == Budget(kl=0.5, refusal=0.25)
    assert told() == budget_of(None)
    with pytest.raises(BaselineError, match="no number"):
        told(budget_kl="little")


def test_too_few_requests_are_an_error() -> None:
    with pytest.raises(SplitError):
        lesson(encoder(), Calibrated(calibrated().harmful[:5], calibrated().benign), seed=0)


def test_requests_without_any_answer_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tuple(Request(prompt=one.prompt) for one in calibrated().harmful)
    silent = type(encoder())(encoder().model, encoder().tokenizer, True, 16, 20)
    said = encoder().answers([Request(prompt="How?")])
    empty = said.model_copy(update={"tokens": ((),) * 1000})
    monkeypatch.setattr(type(silent), "answers", lambda _, asked: empty.model_copy(
        update={"tokens": empty.tokens[: len(asked)]}))  # fmt: skip
    with pytest.raises(BaselineError, match="compliance"):
        lesson(silent, Calibrated(refused, calibrated().benign), seed=0)


def test_every_learnt_baseline_says_what_was_chosen() -> None:
    assert all(everything()[name].words for name in LEARNT)
    assert Condition("nothing", nullcontext).words == ""


def test_what_was_learnt_is_taken_up_from_where_it_is_kept_and_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = partial(learnt, encoder(), spec(), calibrated(), seed=0)
    first = learn(work=Store(tmp_path / "work", {"of": "these"}))
    monkeypatch.setattr(
        "benchmarks.safety.conditions.learnt.learn_all", lambda *_, **__: pytest.fail("it learnt again")
    )
    again = learn(work=Store(tmp_path / "work", {"of": "these"}))
    assert [one.name for one in again] == list(LEARNT)
    asked = [Exchange(one.prompt, str(one.compliance)) for one in requests(HARMFUL)[200:208]]
    some = [*prompts(HARMFUL, 200, 206), *prompts(BENIGN, 300, 306)]
    for one, other in zip(first, again, strict=True):
        assert one.words == other.words == everything()[one.name].words
        with one.installed():
            expected = logits()
        with other.installed():
            assert torch.equal(logits(), expected)
        assert (one.acts is None) == (other.acts is None)
        if one.acts is not None and other.acts is not None:
            assert one.acts(some) == other.acts(some)
        if one.rewrite is not None and other.rewrite is not None:
            assert one.rewrite(asked) == other.rewrite(asked)


def test_what_is_kept_holds_no_request(tmp_path: Path) -> None:
    learnt(encoder(), spec(), calibrated(), seed=0, work=Store(tmp_path / "work", {}))
    (kept,) = (tmp_path / "work").glob("*.json")
    text = kept.read_text()
    assert KeptBaselines.model_validate_json(text).direction.words
    assert not any(one.prompt in text for one in (*calibrated().harmful, *calibrated().benign))


def test_one_that_does_nothing_is_kept_as_that() -> None:
    kept = KeptChange.of(NOTHING)
    assert (kept.added, kept.edits, kept.where) == ({}, (), None)
    assert kept.condition("none", encoder()).installed is nullcontext


def test_an_answer_or_a_kind_of_the_requests_decides_what_is_learnt() -> None:
    one = Request(prompt="How?", compliance="So.")
    others = [one.model_copy(update={"compliance": "No."}), one.model_copy(update={"goal": "what"})]
    digests = {digest_of_lesson(Calibrated((each,), ())) for each in (one, *others)}
    digests |= {digest_of_lesson(Calibrated((), (one,)))}
    assert len(digests) == 4
