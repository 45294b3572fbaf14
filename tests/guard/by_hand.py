"""The guard written a second time, as plainly as can be: forward methods replaced by loops over neurons."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from guard.spec.edit_spec import LayerEdit, Trigger

PROMPTS = torch.tensor([[5, 17, 23, 4, 40], [9, 9, 31, 60, 2]])
EDITS = (
    LayerEdit(layer=1, neurons=(3, 7, 20), scale=(1.0, -2.0, 1.0), lower=(4.0, -0.5, -3.0), upper=(4.0, 0.5, -3.0)),
    LayerEdit(layer=2, neurons=(0, 36), scale=(0.0, 5.0), lower=(-torch.inf, -1.0), upper=(torch.inf, torch.inf)),
)


def make_trigger(d_model: int = 24, *, layer: int = 1, threshold: float = 0.0) -> Trigger:
    """A trigger with a random direction, active on about half of the tokens of a tiny model at threshold 0."""
    direction = torch.randn(d_model, generator=torch.Generator().manual_seed(11))
    return Trigger(
        layer=layer,
        threshold=threshold,
        direction=tuple(direction.tolist()),
        false_trigger_rate=0.01,
        calibration_size=100,
    )


@contextmanager
def guarded_by_hand(model: Any, edits: Sequence[LayerEdit], trigger: Trigger | None = None) -> Iterator[list[Tensor]]:
    """Within the block the model runs with `edits`; yields the list of active masks [rows, tokens], one per pass."""
    masks: list[Tensor] = []
    kept: list[Any] = []

    if trigger is not None:
        layer = model.model.layers[trigger.layer]
        plain_layer = layer.forward

        def triggering(hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
            direction = torch.tensor(trigger.direction, dtype=torch.float64)
            masks.append(torch.einsum("btd,d->bt", hidden_states.double(), direction) > trigger.threshold)
            return plain_layer(hidden_states, *arguments, **named)

        layer.forward = triggering
        kept.append(layer)

    for edit in edits:
        mlp = model.model.layers[edit.layer].mlp

        def forward(x: Tensor, mlp: Any = mlp, edit: LayerEdit = edit) -> Any:
            h = torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
            for j, s, low, high in zip(edit.neurons, edit.scale, edit.lower, edit.upper, strict=True):
                value = (h[..., j] * s).clip(low, high)
                h[..., j] = torch.where(masks[-1], value, h[..., j]) if trigger else value
            return mlp.down_proj(h)

        mlp.forward = forward
        kept.append(mlp)
    try:
        yield masks
    finally:
        for module in kept:
            del module.forward


def greedy(model: Any, prompts: Tensor, *, mask: Tensor | None = None, **settings: Any) -> Tensor:
    """The tokens that `model` adds to `prompts` [rows, tokens], greedily unless `settings` say otherwise."""
    settings = {"do_sample": False, "max_new_tokens": 7} | settings
    attention_mask = torch.ones_like(prompts) if mask is None else mask
    tokens: Tensor = model.generate(prompts, attention_mask=attention_mask, pad_token_id=0, **settings)
    return tokens[:, prompts.shape[1] :]
