"""Y read off the residual stream: what each reading is, in float64."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.effects.outcome import outcome, readout_logits
from calibration.trace.readings import as_steps, lens, readings, turn
from tests.calibration.late_models import base_outcome
from tests.calibration.trace.subjects import (
    LAYERS,
    PROMPT,
    looked_at,
)
from tests.conftest import FAMILIES

families = pytest.mark.parametrize("model_type", FAMILIES)


def keep(streams: list[Tensor], _: nn.Module, given: Any, *output: Tensor) -> None:
    """For a hook before a module or after it: what it is given, or what it gives."""
    streams.append(output[0] if output else given[0])


@families
def test_the_last_reading_is_y(model_type: str) -> None:
    found, gradients, copies = looked_at(model_type)
    assert readings(found, copies.runs)[-1] == pytest.approx(float(base_outcome(found.model, found.batch)), abs=1e-9)
    assert gradients.outcome == pytest.approx(copies.outcome, abs=1e-9)


def test_a_reading_is_y_of_a_model_that_ends_there() -> None:
    found, _, copies = looked_at()
    values = readings(found, copies.runs)
    layers: Any = found.model.get_submodule("model.layers")
    for depth in range(LAYERS):
        streams: list[Tensor] = []
        with torch.no_grad():
            after_attention = layers[depth].post_attention_layernorm
            kept = partial(keep, streams)
            handles = [layers[depth].register_forward_hook(kept), after_attention.register_forward_pre_hook(kept)]
            readout_logits(found.model, found.batch)
            for handle in handles:
                handle.remove()
            middle, after = streams
            for stream, value in ((middle, values[1 + 2 * depth]), (after, values[2 + 2 * depth])):
                logits: Any = found.model.get_submodule("lm_head")(
                    found.model.get_submodule("model.norm")(stream[:, found.batch.readout].float())
                )
                assert float(outcome(logits, found.batch)) == pytest.approx(value, abs=1e-4)


def test_y_turns_where_the_reading_takes_its_last_sign_for_good() -> None:
    found = turn(as_steps([-1.0, 2.0, -0.5, -0.1, 0.25, 3.0, 1.0]))
    assert (found.layer, found.module, found.reading) == (1, "mlp", 0.25)
    always = turn(as_steps([-1.0, -2.0, -0.5]))
    assert (always.layer, always.module) == (0, "embedding")


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt"])
def test_the_lens_reads_the_log_odds_of_the_replies_first_difference(model_type: str) -> None:
    found, _, copies = looked_at(model_type)
    with torch.inference_mode():
        logits: Tensor = found.model(found.batch.input_ids[:1]).logits[0]
    expected = (logits[: len(PROMPT), 21] - logits[: len(PROMPT), 31]).tolist()
    assert lens(found, copies.runs)[-1] == pytest.approx(expected, abs=1e-4)
    assert len(lens(found, copies.runs)) == LAYERS + 1
