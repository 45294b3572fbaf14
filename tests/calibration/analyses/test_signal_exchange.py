"""Exchanging a direction between runs, on models whose signal and path are known."""

import pytest
import torch
from transformers import PreTrainedModel

from calibration.analyses.gate_activity import gate_activity, opening
from calibration.analyses.harm_signal import (
    SignalRuns,
    exchanged,
    random_directions,
    what_the_gate_reads,
)
from calibration.runs.resume import record
from tests.calibration.analyses.signal_models import GATE, batches, signal_model, unit


def runs(model: PreTrainedModel, layer: int) -> SignalRuns:
    activity = gate_activity(model, [GATE])
    with torch.no_grad():
        written = [activity.read(record(model, batch, GATE.layer))[1] for batch in batches()]
    reference, harmful = (record(model, batch, layer + 1) for batch in batches())
    return SignalRuns(activity, opening(*written), reference, harmful)


def test_the_gate_is_shut_on_benign_requests_and_open_on_harmful_ones() -> None:
    made = runs(signal_model(), 0)
    with torch.inference_mode():
        (_, shut), (_, wide) = made._unmoved
    assert float(shut.mean()) == pytest.approx(0, abs=1e-9)
    assert float(wide.mean()) == pytest.approx(1, abs=1e-9)


def test_the_gate_reads_the_direction_that_its_weights_do() -> None:
    read = what_the_gate_reads([runs(signal_model(), 2)])
    assert float(read.norm()) == pytest.approx(1, abs=1e-5)
    assert abs(float(read @ unit(0))) > 0.95


def test_the_signal_put_into_a_benign_run_opens_the_gate_as_harm_does_and_taken_out_shuts_it() -> None:
    effects = exchanged([runs(signal_model(), 1)], unit(0))
    assert effects[:, :2].numpy() == pytest.approx(1, abs=0.2)
    assert effects.mean(0)[:2].numpy() == pytest.approx(1, abs=1e-6)  # the streams differ in nothing else
    assert effects[:, 2:].abs().min() > 0  # and Y moves with it


def test_random_directions_move_the_gate_less() -> None:
    made = runs(signal_model(), 1)
    own = exchanged([made], unit(0)).mean(0)
    drawn = [exchanged([made], unit(0), along).mean(0).abs() for along in random_directions(24, 20, seed=0)]
    assert float(torch.stack(drawn).mean(0)[0]) < 0.5 * float(own[0])


def test_a_gate_that_does_not_listen_is_not_moved_by_the_signal() -> None:
    made = runs(signal_model(listening=False), 1)
    moved = exchanged([made], unit(0))
    with_signal = exchanged([runs(signal_model(), 1)], unit(0))
    change = float((made.scale.change.norm()) / runs(signal_model(), 1).scale.change.norm())
    assert abs(float(moved.mean(0)[0])) * change < 0.05 * float(with_signal.mean(0)[0])


@pytest.mark.parametrize(("relayed", "left"), [(False, 1.0), (True, 0.0)])
def test_frozen_mlps_stop_what_goes_through_them_and_nothing_else(relayed: bool, left: float) -> None:
    made = runs(signal_model(relayed=relayed), 0)
    whole = exchanged([made], unit(0))[:, 0]
    for frozen, expected in (("attention", 1.0), ("mlp", left), ("both", left)):
        remaining = exchanged([made], unit(0), frozen=frozen)[:, 0]  # type: ignore[arg-type]
        assert (remaining / whole).numpy() == pytest.approx(expected, abs=0.05)
    assert whole.abs().min() > 0.1


def test_the_signal_is_there_one_layer_further_on_as_if_recorded_there() -> None:
    model = signal_model(relayed=True)
    stepped, recorded = runs(model, 0).advanced(), runs(model, 1)
    assert torch.equal(stepped.harmful.residual, recorded.harmful.residual)
    assert torch.equal(exchanged([stepped], unit(1)), exchanged([recorded], unit(1)))
