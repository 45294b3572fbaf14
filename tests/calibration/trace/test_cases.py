"""What a trace tells of an edit, and above all what it does not: nothing that leans more to compliance ever speaks."""

from functools import cache
from typing import Any

import pytest
import torch

from calibration.effects.outcome import outcome, readout_logits
from calibration.judging.behaviour import Behaviour
from calibration.runs.interventions import Mediator, patched_outcome
from calibration.trace import cases
from calibration.trace.cases import RISES, TURNS, Intervention, active_tokens
from calibration.trace.document import Trace
from calibration.trace.replies import Said, Speaker
from calibration.trace.subject import lay_out
from guard.errors import ModelMismatchError, RefutedSpecError
from guard.spec.edit_spec import Trigger
from tests.calibration.trace.questions import PROMPT, REFUSAL, asked, below, held, model, plain, sign_of, spec
from tests.calibration.trace.subjects import REPLIES, tokenizer


@cache
def lowered() -> Trace:
    return asked(refusal=REFUSAL, sets=(sign_of(lowers=True),))


@cache
def raised() -> Trace:
    return asked(refusal=REFUSAL, sets=(sign_of(lowers=False),))


def test_the_plain_case_is_y_itself() -> None:
    (case,) = plain().cases
    assert case.name == "plain"
    assert case.outcome == pytest.approx(plain().outcome, abs=1e-5)
    assert case.outcome == pytest.approx(case.compliance - case.refusal)
    assert case.readings[-1] == pytest.approx(case.outcome, abs=1e-5)
    assert case.answer is not None
    assert case.withheld is None


def test_an_edit_that_lowers_y_is_answered() -> None:
    case = lowered().cases[1]
    assert case.outcome < plain().outcome
    assert case.first_tokens
    assert case.answer is not None


@pytest.mark.parametrize("show_text", [False, True])
def test_an_edit_that_raises_y_is_told_in_nats_alone_whatever_is_asked(
    show_text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = raised().sets
    spoken: list[Any] = []
    speak = Speaker.answer

    def listening(self: Speaker, prompt: Any, installed: Any = None, own_surprise: Any = None) -> Said:
        spoken.append(installed)
        return speak(self, prompt) if installed is None else speak(self, prompt, installed, own_surprise)

    monkeypatch.setattr(Speaker, "answer", listening)
    case = asked(refusal=REFUSAL, sets=sets, show_text=show_text).cases[1]
    assert case.outcome > plain().outcome
    assert (case.answer, case.first_tokens, case.withheld) == (None, (), RISES)
    assert [installed for installed in spoken if installed is not None] == []


def test_replies_that_turn_y_around_do_not_make_an_edit_speak() -> None:
    """With the two replies swapped, what raises the lean lowers Y: the replies that no flag chooses still tell."""
    own = asked(show_text=True)
    assert own.compliance.text is not None
    raising = next(
        text
        for neuron in sorted(own.neurons, key=lambda each: each.effect)
        for value in (0, 30, -30)
        for text in [f"L{neuron.layer}.N{neuron.neuron}={value}"]
        if asked(sets=(text,)).cases[1].outcome > own.outcome + 0.01
    )
    swapped = asked(compliance=own.refusal.text, refusal=own.compliance.text, sets=(raising,), show_text=True)
    assert swapped.cases[1].outcome < swapped.outcome
    assert swapped.cases[1].withheld == RISES
    assert swapped.cases[1].answer is None


def test_an_answer_that_no_longer_refuses_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([Behaviour.REFUSED, Behaviour.REFUSED, Behaviour.COMPLIED])
    monkeypatch.setattr(Speaker, "answer", lambda *_: Said((50, 51), "w50 w51", next(said), 0.0))
    text = next(
        f"L{neuron.layer}.N{neuron.neuron}={value}"
        for neuron in plain().neurons
        for value in (0, 9, -9)
        if _lowers(f"L{neuron.layer}.N{neuron.neuron}={value}")
    )
    said = iter([Behaviour.REFUSED, Behaviour.REFUSED, Behaviour.COMPLIED])
    case = asked(refusal=REFUSAL, compliance="w8 w9", sets=(text,), show_text=True).cases[1]
    assert case.withheld == TURNS
    assert case.first_tokens == ()
    assert case.answer is not None
    assert (case.answer.behaviour, case.answer.text) == ("complied", None)


def _lowers(text: str) -> bool:
    """Whether a break lowers Y with the replies of the test above, both times that it is judged."""
    from calibration.trace import replies

    original = replies.Speaker.answer
    replies.Speaker.answer = lambda *_: Said((50, 51), "w50 w51", Behaviour.REFUSED, 0.0)  # type: ignore[method-assign]
    try:
        return asked(refusal=REFUSAL, compliance="w8 w9", sets=(text,)).cases[1].withheld is None
    finally:
        replies.Speaker.answer = original  # type: ignore[method-assign]


def test_answers_that_do_not_refuse_are_left_out_unless_asked_for() -> None:
    hidden, shown = asked(refusal=REFUSAL), asked(refusal=REFUSAL, show_text=True)
    assert hidden.cases[0].answer is not None
    assert hidden.cases[0].answer.text is None
    assert hidden.compliance.text is None
    assert all(column.text is None for column in hidden.columns if column.part == "reply")
    assert shown.cases[0].answer is not None
    assert shown.cases[0].answer.text
    assert shown.cases[0].answer.text not in hidden.model_dump_json()


def test_a_set_neuron_takes_its_value_at_every_token() -> None:
    text = lowered().sets[0]
    place, value = text.split("=")
    layer, neuron = (int(part[1:]) for part in place.split("."))
    subject = lay_out(model(), tokenizer(), tuple(tokenizer()(PROMPT)["input_ids"]), None, REPLIES)
    batch = subject.batch
    every = tuple(range(batch.input_ids.shape[1]))
    mediator = Mediator("neurons", layer, (neuron,), every)
    expected = patched_outcome(model(), batch, {mediator: torch.tensor([float(value)])})
    with torch.inference_mode(), Intervention((held(layer, neuron, float(value)),)).measured(subject, batch):
        torch.testing.assert_close(outcome(readout_logits(model(), batch), batch), expected)


@pytest.mark.parametrize("triggered", [False, True])
def test_what_is_measured_is_what_the_installed_guard_makes(triggered: bool) -> None:
    subject = lay_out(model(), tokenizer(), tuple(tokenizer()(PROMPT)["input_ids"]), None, REPLIES)
    direction = tuple(float(value) for value in torch.randn(24, generator=torch.Generator().manual_seed(2)))
    trigger = None
    if triggered:
        trigger = Trigger(layer=1, threshold=0.0, direction=direction, false_trigger_rate=0.01, calibration_size=128)
    intervention = Intervention((held(0, 3, 4.0),), spec(below(2, 9, -1.0), trigger))
    batch = subject.batch
    with torch.inference_mode():
        with intervention.measured(subject, batch) as active:
            measured = readout_logits(model(), batch)
        with intervention.generating(subject):
            installed = readout_logits(model(), batch)
        plain_logits = readout_logits(model(), batch)
    torch.testing.assert_close(measured, installed)
    assert (measured - plain_logits).abs().max() > 1e-4
    assert (active is not None) == triggered
    if active is not None:
        assert 0 < int(active.sum()) < active.numel()


def test_the_guard_has_the_last_word_over_a_set_neuron() -> None:
    guard = spec(held(2, 9, 0.0))
    found = asked(refusal=REFUSAL, guard=guard, sets=("L2.N9=50",))
    outcomes = {case.name: case.outcome for case in found.cases}
    assert list(outcomes) == ["plain", "guard on", "set", "set, guard on"]
    assert outcomes["set, guard on"] == pytest.approx(outcomes["guard on"], abs=1e-6)
    assert outcomes["set"] != pytest.approx(outcomes["plain"], abs=1e-3)


def test_the_guards_effect_at_one_token_is_a_run_with_the_edit_there_alone() -> None:
    guard = spec(held(2, 9, 3.0))
    found = asked(refusal=REFUSAL, guard=guard).guard
    assert found is not None
    assert found.active == (True,) * len(found.active)
    assert found.layers[0].changed == (1,) * len(found.active)
    ids = tuple(tokenizer()(PROMPT)["input_ids"])
    assert len(found.active) > len(ids)
    assert any(abs(effect or 0.0) > 1e-4 for effect in found.effects)
    gated = {(neuron.layer, neuron.neuron): neuron.role for neuron in asked(refusal=REFUSAL, guard=guard).neurons}
    assert gated[2, 9] == "gate"


def test_a_trigger_that_is_never_active_changes_nothing() -> None:
    trigger = Trigger(layer=0, threshold=1e6, direction=(1.0,) * 24, false_trigger_rate=0.01, calibration_size=128)
    found = asked(refusal=REFUSAL, guard=spec(held(2, 9, 3.0), trigger))
    assert found.guard is not None
    assert not any(found.guard.active)
    assert set(found.guard.effects) == {None}
    assert found.cases[1].outcome == pytest.approx(found.cases[0].outcome, abs=1e-6)
    subject = lay_out(model(), tokenizer(), tuple(tokenizer()(PROMPT)["input_ids"]), None, REPLIES)
    active = active_tokens(subject, subject.batch, spec(held(2, 9, 3.0), trigger))
    assert active is not None
    assert not active.any()


def test_a_refuted_spec_is_traced_only_by_name() -> None:
    refuted = spec(held(2, 9, 0.0), effective=False)
    with pytest.raises(RefutedSpecError, match="--allow-refuted"):
        asked(guard=refuted)
    assert asked(guard=refuted, allow_refuted=True, refusal=REFUSAL).cases[1].name == "guard on"


def test_a_spec_of_another_model_is_refused() -> None:
    other = spec(held(2, 9, 0.0))
    identity = other.model.model_copy(update={"mlp_digest": "0" * 64})
    with pytest.raises(ModelMismatchError):
        asked(guard=other.model_copy(update={"model": identity}))


def test_rounding_is_no_rise() -> None:
    assert cases.ROUNDING < 1e-4
    still = asked(refusal=REFUSAL, sets=("L2.N9<=1e6",)).cases[1]
    assert still.withheld is None
    assert still.outcome == pytest.approx(plain().outcome, abs=1e-6)
