"""The early harm signal: where it is said to be, that its edit only ever guards, and what the report says of it."""

from functools import cache

import plotly.graph_objects as go
import pytest
import torch

from benchmarks.organisms.catalogue import load_truth
from calibration.analyses import harm_signal
from calibration.analyses.gate_activity import gate_activity
from calibration.analyses.harm_signal import (
    Contrast,
    HarmSignal,
    Stretch,
    best_stretch,
    early_layers,
    first_there,
    gate_scale,
    group_mask,
    group_states,
    signal_pairs,
    signal_runs,
    what_the_gate_reads,
)
from calibration.effects.mediation import aligned
from calibration.report.display import TOKEN_GROUP_NAMES
from calibration.runs.resume import record
from guard.spec.measures import Estimate
from tests.calibration.analyses.signal_models import batches, signal_model, unit
from tests.calibration.planted_subject import planted_subject
from tests.calibration.report.test_plots import coloured


@cache
def measured() -> HarmSignal:
    return harm_signal.measure(planted_subject("two-layer"), lambda _: None)


def test_probes_of_the_last_prompt_token_tell_harm_before_the_gate_and_none_reads_after_it() -> None:
    first_guarded = planted_subject("two-layer").edits[0].layer
    assert {readout.layer for readout in measured().readouts} == set(range(first_guarded))
    best = max(r.auroc.value for r in measured().readouts if r.tokens == "last_prompt")
    assert best >= 0.95
    assert measured().reads_out is not None


def test_the_layer_and_the_direction_of_a_planted_signal_are_found() -> None:
    subject, truth = planted_subject("early-signal"), load_truth("early-signal").signal
    assert truth is not None
    early = early_layers(subject)
    calibration, validation = (Contrast(subject, split, early) for split in ("calibration", "validation"))
    activity = gate_activity(subject.model, subject.edits)
    scale = gate_scale(subject, calibration.pairs, activity)
    read = what_the_gate_reads(signal_runs(subject, calibration.pairs, activity, scale, early[-1]))
    assert float(read @ torch.tensor(truth.direction)) > 0.8  # what the norm takes out of the stream is in it too
    assert first_there(validation, read, early) == (truth.layer, True)


def test_the_claim_rests_on_telling_harm_and_on_moving_the_gate_both_ways() -> None:
    (claim,) = measured().claims
    assert claim.name == "early_signal"
    assert len(claim.grounds) == 3
    signal = measured().signal
    assert claim.grounds[0].estimate.value == pytest.approx(signal.auroc.value - 0.95)
    assert claim.grounds[1].estimate == signal.gate_into_reference.beyond


def test_what_is_beyond_random_is_the_effect_less_the_size_of_random_ones() -> None:
    for exchange in measured().exchanges:
        against = exchange.gate_into_harmful
        assert against.beyond.value == pytest.approx(against.effect.value - against.random.value)
        assert against.random.value >= 0


def test_the_unfrozen_path_is_the_exchange_itself() -> None:
    unfrozen = next(path for path in measured().paths if path.frozen == "nothing")
    assert unfrozen.gate_into_reference == measured().signal.gate_into_reference.effect
    assert unfrozen.outcome_into_harmful == measured().signal.outcome_into_harmful.effect


def test_the_model_survives_writing_and_holds_no_text() -> None:
    text = measured().model_dump_json()
    assert HarmSignal.model_validate_json(text) == measured()
    assert len(text) < 60_000
    words = {pair.harmful.prompt for pair in planted_subject("two-layer").sources.pairs.held_out}
    assert not any(prompt in text for prompt in words)


def test_a_disruption_lowers_harm_or_is_not_made() -> None:
    disruption = measured().disruption
    if disruption is not None:
        assert disruption.outcome.harmful_outcome.value < measured().without.harmful_outcome.value
    subject = planted_subject("two-layer")
    nothing = torch.zeros(96)  # a direction along which nothing can be moved
    assert best_stretch(subject, 1, {"probe": nothing}) is None


def test_a_stretch_leaves_what_benign_requests_reach_bit_for_bit_and_moves_the_rest_along_its_direction() -> None:
    direction = unit(3)
    stream = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(0))
    before = stream @ direction
    for factor in (-1.0, 0.0, 4.0):
        after = Stretch(1, "probe", direction, 0.2, factor)(stream)
        assert torch.equal(after[before <= 0.2], stream[before <= 0.2])
        expected = torch.where(before > 0.2, 0.2 + factor * (before - 0.2), before)
        assert torch.allclose(after @ direction, expected, atol=1e-5)
        rest = after - (after @ direction)[..., None] * direction
        assert torch.allclose(rest, stream - before[..., None] * direction, atol=1e-5)


@pytest.mark.parametrize("contrast", ["topic", "jailbreak"])
def test_signal_pairs_line_up_and_have_benign_prompts(contrast: str) -> None:
    subject = planted_subject("jailbreak", wrapped=True) if contrast == "jailbreak" else planted_subject("two-layer")
    split = subject.material.calibration
    pairs = signal_pairs(split, contrast, 1000)
    assert len(pairs) == len(split.harmful)
    width = split.harmful[0].prompt_width
    prompts = {tuple(row.tolist()) for batch in split.benign for row in batch.input_ids[: batch.size, :width]}
    for benign, harmful in pairs:
        aligned(benign, harmful)
        if contrast == "jailbreak":
            assert {tuple(row.tolist()) for row in benign.input_ids[:, :width]} <= prompts


def test_group_states_are_means_of_the_stream_over_the_tokens_of_the_group() -> None:
    model, (_, harmful) = signal_model(), batches()
    found = group_states(model, [harmful, harmful], [0, 2])
    with torch.no_grad():
        stream = record(model, harmful, 3).residual[harmful.size :]
    for (layer, group), states in found.items():
        assert states.shape == (2 * harmful.size, 24)
        if layer == 2:
            mask = group_mask(harmful, group)
            expected = torch.stack([row[kept].mean(0) for row, kept in zip(stream, mask, strict=True)])
            assert torch.allclose(states[: harmful.size].double(), expected, atol=1e-5)
    last = group_mask(harmful, "last_prompt").nonzero()[:, 1]
    assert (last == harmful.prompt_width - 1).all()


def test_the_section_says_its_numbers_and_its_figures_are_named_once() -> None:
    section = harm_signal.describe(measured())
    names = [plot.name for plot in section.plots]
    assert len(set(names)) == len(names) == 4
    assert all(plot.rows and len(row) == len(plot.columns) for plot in section.plots for row in plot.rows)
    assert any("AUROC" in paragraph for paragraph in section.paragraphs)
    assert set(TOKEN_GROUP_NAMES) >= {"tail", "last_prompt", "response"}


def test_the_section_says_no_where_nothing_tells_and_nothing_guards() -> None:
    refuted = measured().model_copy(update={"reads_out": None, "there": False, "disruption": None})
    said = " ".join(harm_signal.describe(refuted).paragraphs)
    assert "No probe before the gate tells harm" in said
    assert "in no layer before it" in said
    assert "none was measured" in said


def test_an_effect_that_is_not_beyond_random_is_not_claimed() -> None:
    none = Estimate(value=-0.2, low=-0.3, high=-0.1, n=9)
    exchanges = [
        exchange.model_copy(
            update={"gate_into_reference": exchange.gate_into_reference.model_copy(update={"beyond": none})}
        )
        for exchange in measured().exchanges
    ]
    (claim,) = measured().model_copy(update={"exchanges": tuple(exchanges)}).claims
    assert claim.said == "no"


def test_plotly_accepts_every_figure_of_the_section() -> None:
    for plot in harm_signal.describe(measured()).plots:
        go.Figure({"data": coloured(plot.traces), "layout": coloured(plot.layout)})
