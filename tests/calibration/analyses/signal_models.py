"""Tiny models whose harm signal is known: a direction that the last prompt token brings in, and a neuron that reads it.

Every other module writes nothing, so what the stream holds is what was put there.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from calibration.prompts.sequences import Batch, Example, collate
from guard.spec.edit_spec import LayerEdit
from tests.conftest import make_tiny_model

HARM, BENIGN = 50, 51  # last prompt tokens
GATE = LayerEdit(layer=3, neurons=(5,), scale=(0.0,), lower=(0.0,), upper=(0.0,))
OWN = (5, 6)  # neurons of the gate and of the relay
D_MODEL = 24


def unit(place: int) -> Tensor:
    """A unit direction [d_model], another for each place."""
    drawn = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(4))
    drawn_units: Tensor = torch.linalg.qr(drawn).Q
    return drawn_units[place]


def signal_model(*, relayed: bool = False, listening: bool = True) -> PreTrainedModel:
    """Four layers. The gate in layer 3 reads unit(0), which `HARM` brings in and `BENIGN` does not, and writes unit(2).

    With `relayed` it reads unit(1) instead, which a neuron of layer 1 writes where it reads unit(0). Not `listening`:
    the gate reads unit(3), which says nothing.
    """
    model = make_tiny_model(layers=4, d_model=D_MODEL, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        plain = model.model.embed_tokens.weight
        plain -= (plain @ unit(0).double())[:, None] * unit(0)
        plain[HARM] = plain[BENIGN] + 0.3 * unit(0)
        _read(model, GATE.layer, OWN[0], unit(3) if not listening else unit(1) if relayed else unit(0))
        model.model.layers[GATE.layer].mlp.down_proj.weight[:, OWN[0]] = unit(2)
        if relayed:
            _read(model, 1, OWN[1], unit(0))
            model.model.layers[1].mlp.down_proj.weight[:, OWN[1]] = unit(1)
    return model


def _read(model: PreTrainedModel, layer: int, neuron: int, direction: Tensor) -> None:
    mlp = model.model.layers[layer].mlp
    mlp.gate_proj.weight[neuron] = direction
    mlp.up_proj.weight[neuron] = direction


def batches(count: int = 6) -> tuple[Batch, Batch]:
    """Benign and harmful requests of different lengths that line up, with the same forced responses."""
    words = [tuple(range(3 + place, 6 + place + place % 3)) for place in range(count)]
    made = []
    for last in (BENIGN, HARM):
        examples = [Example((*prompt, last), (20, 21), (30, 31, 32)) for prompt in words]
        made.append(collate(examples, pad_id=0, tail=1, prompt_width=8))
    return made[0], made[1]
