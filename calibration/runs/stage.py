"""The late layers of one split, ready for trials: kept residual streams, where an edit would be active, activations.

Everything that selection, bounds and evidence ask of a split's requests goes through here, so that a trigger, a batch
size or a new model family is dealt with in one place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor, nn

from calibration.prompts.sequences import Batch, Example, collate
from calibration.runs.resume import LateRun, record
from calibration.runs.shelf import Shelf, Shelved, taken
from calibration.runs.trial import Transform, transformed
from calibration.search.bounds import Activations
from calibration.search.selection import Requests
from calibration.search.trigger import ShelvedStates, TokenStates, entering_states
from guard.errors import UnsupportedModelError
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import Trigger

BENIGN_QUANTILE = 0.995
NEURONS_AT_ONCE = 1024


class ShelvedRuns(Sequence[LateRun]):
    """Late runs whose tensors are on a shelf: each is there for as long as it is looked at."""

    def __init__(self, runs: Sequence[LateRun]) -> None:
        self._runs = runs

    @overload
    def __getitem__(self, place: int) -> LateRun: ...

    @overload
    def __getitem__(self, place: slice) -> "ShelvedRuns": ...

    def __getitem__(self, place: int | slice) -> "LateRun | ShelvedRuns":
        if isinstance(place, slice):
            return ShelvedRuns(self._runs[place])
        run = self._runs[place]
        return replace(run, residual=taken(run.residual), arguments=taken(run.arguments))

    def __len__(self) -> int:
        return len(self._runs)


@dataclass(frozen=True)
class Kept:
    """One kind of requests of one split: its batches and their late runs."""

    batches: tuple[Batch, ...]
    runs: Sequence[LateRun]

    def where(self, trigger: Trigger | None, *, limit: int | None = None) -> Requests:
        """The runs, with where `trigger` is active in each: everywhere if there is none.

        With a `limit`, only as many batches as hold that many requests.
        """
        count = len(self.runs) if limit is None else max(1, limit // self.batches[0].size)
        runs = self.runs[:count]
        if trigger is None:
            return Requests(runs, (None,) * len(runs))
        direction = torch.tensor(trigger.direction, dtype=torch.float32)
        active = []
        for run in runs:
            states = entering_states(run.model, [run.batch], [trigger.layer], compliance_only=False)[trigger.layer]
            active.append(((states.states.float() @ direction) > trigger.threshold).to(run.residual.device))  # [2B, T]
        return Requests(runs, tuple(active))


def collate_all(
    examples: Sequence[Example], *, pad_id: int, device: torch.device, batch_size: int, prompt_width: int, tail: int
) -> tuple[Batch, ...]:
    """The examples as batches of at most `batch_size` requests, all with one prompt width and tail."""
    return tuple(
        collate(
            examples[start : start + batch_size], pad_id=pad_id, device=device, prompt_width=prompt_width, tail=tail
        )
        for start in range(0, len(examples), batch_size)
    )


def keep(model: nn.Module, batches: Sequence[Batch], first_layer: int, shelf: Shelf | None = None) -> Kept:
    """Run each batch once and keep what the layers from `first_layer` on need on `shelf`; without one in memory."""
    keeper = shelf or Shelf()

    def shelved(batch: Batch) -> LateRun:
        run = record(model, batch, first_layer)
        residual, arguments = keeper.put_all((run.residual, run.arguments))
        return replace(run, residual=residual, arguments=arguments)

    return Kept(tuple(batches), ShelvedRuns([shelved(batch) for batch in batches]))


@torch.inference_mode()
def neuron_values(kept: Kept, layers: Sequence[int], shelf: Shelf | None = None) -> ShelvedStates:
    """Activations of the late neurons over all rows of `kept`, by layer: [rows, T, d_ff], the mask of real tokens."""
    keeper = shelf or Shelf()
    collected: dict[int, list[Shelved]] = {layer: [] for layer in layers}
    width = max(batch.input_ids.shape[1] for batch in kept.batches)

    def keeping(layer: int) -> Transform:
        def transform(h: Tensor) -> Tensor:
            collected[layer].append(keeper.put(nn.functional.pad(h, (0, 0, 0, width - h.shape[1])).cpu()))
            return h

        return transform

    for run in kept.runs:
        with transformed(run.model, {layer: keeping(layer) for layer in layers}):
            run.readout_logits()
    mask = torch.cat(
        [
            nn.functional.pad(batch.attention_mask.bool().cpu(), (0, width - batch.attention_mask.shape[1]))
            for batch in kept.batches
        ]
    )
    decisive = torch.full((mask.shape[0],), kept.batches[0].prompt_width - 1)
    return ShelvedStates(collected, mask, decisive)


def _decisive_mean(values: TokenStates) -> Tensor:
    """Mean at the last prompt token, where the answer is decided, [d_ff] float32."""
    return values.states[torch.arange(len(values.decisive)), values.decisive].float().mean(0)


def _aligned_mean(values: TokenStates, batches: Sequence[Batch]) -> Tensor:
    """Mean over the tokens that line up (template tail and response), [d_ff] float32."""
    mask = values.mask.clone()
    mask[:, : batches[0].edited.start] = False
    return values.states[mask].float().mean(0)


def _far_quantiles(values: TokenStates) -> tuple[Tensor, Tensor]:
    """The benign quantiles of each neuron over all tokens, low and high, [d_ff] float32 each; some neurons at a time,
    for sorting takes five times the memory of what is sorted.
    """
    tokens = values.states[values.mask]  # [tokens, d_ff]
    place = round(BENIGN_QUANTILE * (tokens.shape[0] - 1))
    ordered = (some.float().sort(dim=0).values for some in torch.split(tokens, NEURONS_AT_ONCE, dim=1))
    ends = [(block[tokens.shape[0] - 1 - place].clone(), block[place].clone()) for block in ordered]
    low, high = (torch.cat(parts) for parts in zip(*ends, strict=True))
    return low, high


def summarise(
    harmful: Kept, reference: Kept, benign: Kept, layers: Sequence[int], shelf: Shelf | None = None
) -> Activations:
    """The activations that bounds are built from (see `Activations`), on the device of the batches."""
    home = harmful.batches[0].input_ids.device

    def read(kept: Kept, reading: Callable[[TokenStates], tuple[Tensor, ...]]) -> list[dict[int, Tensor]]:
        """Each of the summaries that `reading` makes of a layer's values, by layer."""
        found = [[each.to(home) for each in reading(values)] for values in neuron_values(kept, layers, shelf).values()]
        return [dict(zip(layers, summary, strict=True)) for summary in zip(*found, strict=True)]

    low, high, benign_mean = read(
        benign, lambda values: (*_far_quantiles(values), _aligned_mean(values, benign.batches))
    )
    harmful_mean, size = read(
        harmful, lambda values: (_decisive_mean(values), values.states[values.mask].float().abs().mean(0))
    )
    (reference_mean,) = read(reference, lambda values: (_decisive_mean(values),))
    return Activations(benign_mean, low, high, harmful_mean, reference_mean, size)


def late_layers(model: nn.Module) -> tuple[int, ...]:
    """The layers that are searched for a gate: the later half; UnsupportedModelError if their widths differ."""
    architecture = architecture_of(model)
    layers = architecture.decoder_layers(model)
    late = tuple(range(len(layers) - max(1, len(layers) // 2), len(layers)))
    widths = {architecture.neurons_of(layers[index]) for index in late}
    if len(widths) > 1:
        raise UnsupportedModelError(
            f"the late layers have different numbers of neurons ({', '.join(map(str, sorted(widths)))}): calibration "
            f"ranks them in one table and needs late layers of one width."
        )
    return late
