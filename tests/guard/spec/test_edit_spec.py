"""A spec is valid from the moment it exists, and a file gives back the very spec that was saved."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guard.spec.edit_spec import BenignRates, EditSpec, Estimate, LayerClips, LayerEdit, Trial, Trigger
from tests.guard.specs import (
    EFFECTIVE,
    EVIDENCE,
    HALF,
    HELD_OUT,
    LAYERS,
    MODEL,
    RATES,
    REFUTED,
    TRIGGER,
    evidence_with,
    finite,
    small_spec,
    specs,
)

OLD_DIGEST = "c3ec595f55df6c9239da5aec23246dc381b069323fd77a42260d04851e57ce89"  # of small_spec, before benign rates
each_example_overwrites = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def edit(**changes: Any) -> LayerEdit:
    fields: dict[str, Any] = {
        "layer": 2,
        "neurons": (1, 4),
        "scale": (1.0, 1.0),
        "lower": (0.0, 0.0),
        "upper": (1.0, 1.0),
    }
    return LayerEdit(**(fields | changes))


def trigger(**changes: Any) -> Trigger:
    return Trigger(**(TRIGGER.model_dump() | changes))


@given(spec=specs())
@each_example_overwrites
def test_a_spec_that_was_saved_is_loaded_as_it_was(spec: EditSpec, tmp_path: Path) -> None:
    spec.save(tmp_path / "spec")
    loaded = EditSpec.load(tmp_path / "spec")
    assert loaded == spec
    assert loaded.digest == spec.digest


@given(spec=specs())
@each_example_overwrites
def test_a_spec_passes_through_json_unchanged(spec: EditSpec) -> None:
    assert EditSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": (edit(upper=(1.0, 1.5)), LAYERS[1])},
        {"layers": LAYERS[:1]},
        {"trigger": None},
        {"trigger": trigger(direction=(0.1, -0.2, 1e-30))},
        {"trigger": trigger(threshold=0.25)},
        {"model": MODEL.model_copy(update={"mlp_digest": "4" * 64})},
        {"evidence": evidence_with(verdict=REFUTED)},
    ],
)
def test_each_part_of_a_spec_shows_in_its_digest(changes: dict[str, Any]) -> None:
    assert small_spec(**changes).digest != small_spec().digest


def test_the_digest_does_not_depend_on_the_layout_of_the_file(tmp_path: Path) -> None:
    spec, path = small_spec(), tmp_path / "spec"
    spec.save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["neuron_guard"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header: dict[str, Any] = {"__metadata__": {"neuron_guard": json.dumps(document, indent=1)}}
    data = b""
    for name in sorted(tensors, reverse=True):
        raw = tensors[name].numpy().tobytes()
        kind = "I32" if tensors[name].dtype == torch.int32 else "F32"
        header[name] = {"dtype": kind, "shape": [len(tensors[name])], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    other = len(encoded).to_bytes(8, "little") + encoded + data
    assert other != path.read_bytes()
    path.write_bytes(other)
    assert EditSpec.load(path).digest == spec.digest


def test_a_saved_spec_is_a_safetensors_file_as_designed(tmp_path: Path) -> None:
    small_spec().save(tmp_path / "spec")
    tensors = safetensors.torch.load_file(tmp_path / "spec")
    expected = {
        f"layers.{index}.{field}": torch.int32 if field == "neurons" else torch.float32
        for index in (2, 3)
        for field in ("neurons", "scale", "lower", "upper")
    } | {"trigger.direction": torch.float32}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == expected
    assert tensors["layers.2.neurons"].tolist() == [1, 4]
    assert tensors["layers.2.lower"].tolist() == [-math.inf, 0.25]


@given(values=st.lists(finite, min_size=2, max_size=2))
def test_numbers_are_those_that_float32_holds(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(values, dtype=np.float64).astype(np.float32)
    if np.isfinite(expected).all():
        assert edit(scale=values).scale == tuple(expected.tolist())
    else:
        with pytest.raises(ValidationError, match="does not fit in float32"):
            edit(scale=values)


def test_a_negative_zero_is_zero() -> None:
    zeros = edit(lower=(-0.0, 0.0), scale=(-0.0, -0.0))
    assert [math.copysign(1.0, value) for value in zeros.lower + zeros.scale] == [1.0] * 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"neurons": (4, 1)}, "the neurons of layer 2 are not sorted, each once"),
        ({"neurons": (4, 4)}, "the neurons of layer 2 are not sorted, each once"),
        ({"neurons": ()}, "at least 1 item"),
        ({"neurons": (-1, 4)}, "greater than or equal to 0"),
        ({"neurons": (1, 2**31)}, "less than 2147483648"),
        ({"layer": -1}, "greater than or equal to 0"),
        ({"scale": (1.0,)}, "layer 2 has 2 neurons but 1 of scale"),
        ({"upper": (1.0, 1.0, 1.0)}, "layer 2 has 2 neurons but 3 of upper"),
        ({"scale": (1.0, math.inf)}, "a value is not finite"),
        ({"scale": (1.0, math.nan)}, "a value is NaN"),
        ({"lower": (0.0, math.nan)}, "a value is NaN"),
        ({"upper": (0.0, 1e39)}, "does not fit in float32"),
        ({"lower": (0.0, 1.5)}, "neuron 4 of layer 2 has lower bound 1.5 above upper 1.0"),
        ({"upper": (math.inf, math.inf), "lower": (math.inf, 0.0)}, "neuron 1 of layer 2 is bounded to an infinity"),
        ({"lower": (0.0, -math.inf), "upper": (1.0, -math.inf)}, "neuron 4 of layer 2 is bounded to an infinity"),
        ({"mode": "raise"}, "Unexpected keyword argument|Extra inputs"),
    ],
)
def test_an_inconsistent_layer_edit_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        edit(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"direction": (0.0, -0.0, 1e-60)}, "the trigger's direction is zero"),
        ({"direction": (0.0, math.inf, 1.0)}, "a value is not finite"),
        ({"direction": ()}, "at least 1 item"),
        ({"threshold": math.inf}, "a value is not finite"),
        ({"false_trigger_rate": 1.5}, "less than or equal to 1"),
        ({"calibration_size": -1}, "greater than or equal to 0"),
    ],
)
def test_an_inconsistent_trigger_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        trigger(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": LAYERS[::-1]}, r"the guarded layers \[3, 2\] are not sorted, each once"),
        ({"layers": (LAYERS[0], LAYERS[0])}, r"the guarded layers \[2, 2\] are not sorted"),
        ({"layers": ()}, "the verdict is effective, but no layer is edited"),
        ({"layers": (edit(layer=4),)}, "layer 4 is named, but the model has 4 layers"),
        ({"layers": (edit(neurons=(1, 9)),)}, "neuron 9 of layer 2 is named, but the model's d_ff is 9"),
        ({"trigger": trigger(layer=3)}, "the trigger reads layer 3, after the first guarded layer 2"),
        ({"trigger": trigger(direction=(1.0, 1.0))}, "direction has 2 entries, the model's d_model is 3"),
        (
            {"trigger": trigger(layer=4), "layers": (), "evidence": evidence_with(verdict=REFUTED)},
            "layer 4 is named, but the model has 4 layers",
        ),
        (
            {"evidence": evidence_with(neurons=(EVIDENCE.neurons[0].model_copy(update={"neuron": 9}),))},
            "neuron 9 of layer 2 is named",
        ),
        (
            {"evidence": evidence_with(mediators=(EVIDENCE.mediators[0].model_copy(update={"layer": 4}),))},
            "layer 4 is named",
        ),
        ({"schema_version": 2}, "Input should be 1"),
        ({"model": MODEL.model_dump() | {"mlp_digest": "not a digest"}}, "should match pattern"),
        ({"model": MODEL.model_dump() | {"mlp_digest": "2" * 64 + "\n"}}, "should match pattern"),
        ({"model": MODEL.model_dump() | {"d_model": 0}}, "greater than or equal to 1"),
    ],
)
def test_a_spec_whose_parts_do_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        small_spec(**changes)


def test_a_refuted_spec_may_edit_nothing() -> None:
    assert small_spec(layers=(), trigger=None, evidence=evidence_with(verdict=REFUTED)).layers == ()


def test_a_trigger_may_read_the_first_guarded_layer() -> None:
    assert small_spec(trigger=trigger(layer=2)).trigger == trigger(layer=2)


def test_a_guard_that_raises_harmful_compliance_is_never_effective() -> None:
    compliance = HELD_OUT.harmful_compliance
    turned = compliance.model_copy(update={"off": compliance.on, "on": compliance.off})
    held_out = HELD_OUT.model_copy(update={"harmful_compliance": turned})
    with pytest.raises(ValidationError, match="harmful compliance is higher with the guard than without"):
        evidence_with(held_out=held_out, verdict=EFFECTIVE)
    evidence_with(held_out=held_out, verdict=REFUTED)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_every_number_of_an_estimate_is_finite(field: str, number: float) -> None:
    with pytest.raises(ValidationError, match="the number is not finite"):
        Estimate(**(HALF.model_dump() | {field: number}))


@pytest.mark.parametrize("field", ["strength", "harmful_outcome", "benign_kl"])
def test_every_number_of_a_trial_is_finite(field: str) -> None:
    with pytest.raises(ValidationError, match="the number is not finite"):
        Trial(**(EVIDENCE.trials[0].model_dump() | {field: math.nan}))


def test_an_interval_has_its_ends_in_order() -> None:
    with pytest.raises(ValidationError, match=r"low end 2\.0 is above its high end 1\.0"):
        Estimate(value=1.5, low=2.0, high=1.0, n=3)


def test_a_refuted_verdict_says_why() -> None:
    with pytest.raises(ValidationError, match="at least one reason"):
        type(REFUTED)(outcome="refuted", reasons=(), p_value=0.5, margin=0.3)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        small_spec().trigger = None  # type: ignore[misc]


def with_rates(rates: BenignRates | None, **changes: Any) -> EditSpec:
    held_out = HELD_OUT.model_copy(update={"benign_rates": rates})
    return small_spec(evidence=evidence_with(held_out=held_out), **changes)


def test_a_spec_without_benign_rates_is_written_as_before_there_were_any(tmp_path: Path) -> None:
    small_spec().save(tmp_path / "spec")
    assert b"benign_rates" not in (tmp_path / "spec").read_bytes()
    assert small_spec().digest == OLD_DIGEST


def test_benign_rates_travel_in_the_file_and_show_in_the_digest(tmp_path: Path) -> None:
    spec = with_rates(RATES)
    spec.save(tmp_path / "spec")
    assert EditSpec.load(tmp_path / "spec").evidence.held_out.benign_rates == RATES
    assert spec.digest != small_spec().digest


@pytest.mark.parametrize(
    ("rates", "changes", "reason"),
    [
        (RATES.model_copy(update={"clips": RATES.clips[:1]}), {}, "not those of the guarded layers"),
        (RATES.model_copy(update={"clips": RATES.clips[::-1]}), {}, "not those of the guarded layers"),
        (RATES, {"trigger": None}, "a trigger that the spec does not have"),
        (RATES.model_copy(update={"triggered": None}), {}, "or leave out its own"),
    ],
)
def test_benign_rates_of_another_spec_are_refused(rates: BenignRates, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        with_rates(rates, **changes)


@pytest.mark.parametrize("share", [{"value": 1.5, "high": 2.0}, {"low": -0.5}, {"value": 0.1}])
def test_a_rate_that_is_no_share_is_refused(share: dict[str, float]) -> None:
    wrong = Estimate(**(HALF.model_dump() | share))
    with pytest.raises(ValidationError, match="is not between 0 and 1"):
        BenignRates(triggered=wrong, clips=RATES.clips)
    with pytest.raises(ValidationError, match="is not between 0 and 1"):
        BenignRates(triggered=None, clips=(LayerClips(layer=2, share=wrong),))
