"""Harmful requests beside benign ones with the same forced response, and the residual streams of both.

A harm signal is what tells harmful requests from benign ones, so its pairs are of that kind also where the gate's are
jailbreaks, whose two requests are both harmful. Benign prompts then stand in for the references, wrapped as they are.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from calibration.prompts.sequences import Batch
from calibration.runs.interventions import token_columns
from calibration.runs.layer_calls import calls
from calibration.search.gate import SplitBatches
from guard.families.architectures import architecture_of

Pairs = list[tuple[Batch, Batch]]
Seen = Callable[[Tensor, dict[str, Any]], None]
TokenGroup = Literal["request", "tail", "last_prompt", "response"]
TOKEN_GROUPS: tuple[TokenGroup, ...] = ("request", "tail", "last_prompt", "response")


def signal_pairs(split: SplitBatches, contrast: str, limit: int) -> Pairs:
    """Batches (benign, harmful) that line up: as many as hold `limit` pairs, at least one."""
    chosen = split.harmful[: max(1, limit // split.harmful[0].size)]
    if contrast == "topic":
        return list(zip(split.reference, chosen, strict=False))
    width = split.benign[0].prompt_width
    ids = torch.cat([batch.input_ids[: batch.size, :width] for batch in split.benign])
    mask = torch.cat([batch.attention_mask[: batch.size, :width] for batch in split.benign])
    pairs, start = [], 0
    for harmful in chosen:
        which = torch.arange(start, start + harmful.size) % len(ids)
        pairs.append((_with_prompts(harmful, ids[which], mask[which]), harmful))
        start += harmful.size
    return pairs


def _with_prompts(batch: Batch, ids: Tensor, mask: Tensor) -> Batch:
    """The same continuations after other prompts, `ids` and `mask` int64 [B, P]."""
    new_mask = torch.cat([mask.repeat(2, 1), batch.attention_mask[:, batch.prompt_width :]], dim=1)
    return replace(
        batch,
        input_ids=torch.cat([ids.repeat(2, 1), batch.targets], dim=1),
        attention_mask=new_mask,
        position_ids=(new_mask.cumsum(dim=1) - 1).clamp(min=0),
    )


def group_mask(batch: Batch, group: TokenGroup) -> Tensor:
    """The real tokens of a group in the refusal rows, bool [B, T]: request is the prompt before the template tail."""
    columns = range(batch.edited.start) if group == "request" else token_columns(batch, group)
    inside = torch.zeros(batch.input_ids.shape[1], dtype=torch.bool, device=batch.input_ids.device)
    inside[torch.tensor(list(columns), dtype=torch.long, device=inside.device)] = True
    return batch.attention_mask[batch.size :].bool() & inside


@torch.inference_mode()
def group_states(
    model: nn.Module, batches: Sequence[Batch], layers: Sequence[int]
) -> dict[tuple[int, TokenGroup], Tensor]:
    """The residual stream that leaves each of `layers`, averaged over each token group: [requests, d_model] float32.

    Of the rows that carry the refusal, so that the response says the same whatever was asked. The last layer cannot be
    asked for.
    """
    decoder_layers = architecture_of(model).decoder_layers(model)
    found: dict[tuple[int, TokenGroup], list[Tensor]] = {
        (layer, group): [] for layer in layers for group in TOKEN_GROUPS
    }
    for batch in batches:
        weights = {}
        for group in TOKEN_GROUPS:
            mask = group_mask(batch, group).float()
            weights[group] = mask / mask.sum(1, keepdim=True).clamp(min=1)  # [B, T]

        def keep(
            layer: int, rows: slice, weights: dict[TokenGroup, Tensor]
        ) -> Callable[[Tensor, dict[str, Any]], None]:
            def seen(entering: Tensor, _: dict[str, Any]) -> None:
                for group, weight in weights.items():
                    mean = torch.einsum("bt,btd->bd", weight.to(entering.device), entering[rows].float())
                    found[layer, group].append(mean.cpu())

            return seen

        with ExitStack() as stack:
            for layer in layers:
                kept = keep(layer, slice(batch.size, 2 * batch.size), weights)
                stack.enter_context(calls(decoder_layers[layer + 1], kept))
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=1,
            )
    return {place: torch.cat(parts) for place, parts in found.items()}
