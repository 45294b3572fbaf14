"""Effects by token, and windows of the gate's edit."""

from functools import cache

import plotly.graph_objects as go
import pytest
import torch

from calibration.analyses import token_effects
from calibration.analyses.token_effects import EVERYWHERE, EditedRuns, TokenEffects, single_tokens, windows
from calibration.effects.mediation import controlled_effect, mediator_effects
from calibration.runs.interventions import Mediator
from calibration.runs.token_window import Window
from tests.calibration.planted_subject import planted_subject
from tests.calibration.report.test_plots import coloured


@cache
def measured() -> TokenEffects:
    return token_effects.measure(planted_subject("two-layer"), lambda _: None)


def test_effects_at_single_tokens_are_those_of_mediation_at_their_columns() -> None:
    subject = planted_subject("two-layer")
    split = subject.material.calibration
    pairs = list(zip(split.reference, split.harmful, strict=True))[:2]
    column = split.harmful[0].prompt_width - 1
    mediator = Mediator("layer", 4, tokens=(column,))
    expected = mediator_effects(subject.model, pairs, [mediator])[mediator]
    found = next(effect for effect in measured().single if (effect.layer, effect.tokens) == (4, 0))
    assert found.natural_indirect_effect.value == pytest.approx(float(expected.natural_indirect.mean()), abs=1e-5)
    assert found.total_natural_indirect_effect.value == pytest.approx(
        float(expected.total_natural_indirect.mean()), abs=1e-5
    )


def test_every_layer_is_patched_at_every_token_that_lines_up() -> None:
    subject = planted_subject("two-layer")
    batches = subject.material.calibration.harmful
    tokens = single_tokens(batches)
    assert tokens[0] == 1 - batches[0].tail
    assert tokens[-1] == max(batch.continuation_width for batch in batches) - 1
    assert {(e.layer, e.tokens) for e in measured().single} == {(at, token) for at in range(6) for token in tokens}


def test_the_windows_are_controlled_effects_at_their_columns() -> None:
    subject = planted_subject("two-layer")
    runs, window = EditedRuns(subject), Window(0, 1)
    found, place = runs.effects(window), 0
    for batch in subject.material.validation.harmful:
        width = batch.input_ids.shape[1]
        active = window.columns(batch.prompt_width, width, torch.device("cpu")).expand(2 * batch.size, -1)
        expected = controlled_effect(subject.model, batch, subject.edits, active)
        assert torch.allclose(found[place : place + batch.size].float(), expected, atol=1e-5)
        place += batch.size
    assert place == len(found)


def test_the_edit_at_every_token_has_all_of_its_own_effect() -> None:
    deployed = measured().deployed
    assert deployed is not None
    assert deployed.share.value == pytest.approx(1.0)
    assert [window.response_tokens for window in measured().windows] == [0, 1, 2, 4, 8, None, None]
    assert windows()[-1] == EVERYWHERE


def test_on_the_planted_organism_the_last_prompt_token_decides_and_the_shortest_window_suffices() -> None:
    decisive, enough, deployed = measured().decisive, measured().enough, measured().deployed
    assert decisive is not None
    assert enough is not None
    assert deployed is not None
    assert decisive.token == 0
    assert enough.response_tokens == 0
    assert enough.harmful_compliance.value <= deployed.harmful_compliance.value + 0.1


def test_nothing_suffices_where_only_the_whole_conversation_takes_the_effect() -> None:
    weak = [
        window
        if window.everywhere
        else window.model_copy(
            update={"share": window.share.model_copy(update={"low": 0.1, "value": 0.2, "high": 0.3})}
        )
        for window in measured().windows
    ]
    changed = measured().model_copy(update={"windows": tuple(weak)})
    assert changed.enough is None
    assert "No clamp from the last prompt token on suffices" in token_effects.sufficiency(changed)


def test_a_window_that_leaves_more_compliance_than_the_deployed_edit_does_not_suffice() -> None:
    loud = [
        window
        if window.everywhere
        else window.model_copy(
            update={"harmful_compliance": window.harmful_compliance.model_copy(update={"low": 0.8, "value": 0.9})}
        )
        for window in measured().windows
    ]
    assert measured().model_copy(update={"windows": tuple(loud)}).enough is None


def test_the_model_survives_writing() -> None:
    text = measured().model_dump_json()
    assert TokenEffects.model_validate_json(text) == measured()


def test_the_section_says_how_few_tokens_suffice() -> None:
    section = token_effects.describe(measured())
    assert "A clamp on the last prompt token alone takes" in section.paragraphs[-1]
    names = [plot.name for plot in section.plots]
    assert len(set(names)) == len(names) == 4
    assert all(len(row) == len(plot.columns) for plot in section.plots for row in plot.rows)


def test_without_a_gate_there_are_effects_by_token_and_no_windows() -> None:
    bare = TokenEffects(
        total_effect=measured().total_effect, effects=measured().effects, compliance_off=None, edited=(), windows=()
    )
    section = token_effects.describe(bare)
    assert len(section.plots) == 2
    assert bare.enough is None
    assert bare.decisive is None


def test_plotly_accepts_every_figure_of_the_section() -> None:
    for plot in token_effects.describe(measured()).plots:
        go.Figure({"data": coloured(plot.traces), "layout": coloured(plot.layout)})
