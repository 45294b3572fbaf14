"""Calls of decoder layers and what passes through them, in every family of the table."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.effects.outcome import readout_logits
from calibration.runs.interventions import Mediator, patching
from calibration.runs.layer_calls import calls, changed_input, changed_output, leaving, split_call
from guard.families.architectures import architecture_of
from tests.calibration.late_models import random_batch, shared_model
from tests.conftest import FAMILIES

families = pytest.mark.parametrize("model_type", FAMILIES)


@families
def test_a_layer_called_again_with_what_it_was_given_gives_the_same_stream(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    first, second = architecture_of(model).decoder_layers(model)[1:3]
    seen: list[tuple[Tensor, dict[str, Any]]] = []
    with torch.inference_mode():
        with calls(first, lambda *call: seen.append(call)), calls(second, lambda *call: seen.append(call)):
            readout_logits(model, batch)
        (entering, arguments), (left, _) = seen
        torch.testing.assert_close(leaving(first, entering, arguments), left, rtol=0, atol=1e-12)
    assert entering.shape == left.shape == (*batch.input_ids.shape, 24)
    assert any(isinstance(value, Tensor) for value in arguments.values())


@families
def test_neurons_and_contributions_pass_by_row_and_column_and_as_the_model_has_them(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    architecture = architecture_of(model)
    layer = architecture.decoder_layers(model)[2]
    down, shapes = architecture.down_projection(layer), list[torch.Size]()
    hidden: list[Tensor] = []

    def look(values: Tensor) -> None:
        shapes.append(values.shape)
        hidden.append(values)

    with torch.inference_mode():
        plain = readout_logits(model, batch)
        with changed_input(layer, down, look), changed_output(layer, down, look):
            assert torch.equal(readout_logits(model, batch), plain)
        projected = down(hidden[0].flatten(0, 1)).view(hidden[1].shape)
    rows = tuple(batch.input_ids.shape)
    assert shapes == [(*rows, architecture.neurons_of(layer)), (*rows, 24)]
    if model_type != "falcon":  # which adds what attention gives to this very tensor
        torch.testing.assert_close(projected, hidden[1])


@families
def test_a_layer_whose_attention_and_mlp_give_nothing_passes_the_stream_on_as_it_is(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    layer = architecture_of(model).decoder_layers(model)[1]
    streams: list[Tensor] = []
    everywhere = tuple(range(batch.input_ids.shape[1]))
    nothing = {Mediator(kind, 1, tokens=everywhere): torch.zeros(()) for kind in ("attention", "mlp")}
    with (
        torch.inference_mode(),
        patching(model, batch, nothing),
        calls(layer, lambda entering, _: streams.append(entering.clone())),
        changed_output(layer, layer, lambda left: streams.append(left.clone())),
    ):
        readout_logits(model, batch)
    torch.testing.assert_close(streams[1], streams[0], rtol=0, atol=1e-12)


class Layer(nn.Module):
    def forward(self, hidden_states: Tensor, past: Tensor | None = None, *, scale: float = 1.0, **others: Any) -> Any:
        return (hidden_states * scale, past, others)


def test_arguments_by_position_and_those_that_the_layer_only_passes_on_are_kept_by_name() -> None:
    stream, past = torch.ones(2, 3, 4), torch.zeros(1)
    entering, arguments = split_call(Layer(), (stream, past), {"scale": 2.0, "window": 5})
    assert entering is stream
    assert arguments == {"past": past, "scale": 2.0, "window": 5}
    assert torch.equal(leaving(Layer(), stream, arguments), 2.0 * stream)
