"""Units of attention and of the MLP alike, and runs in which sets of them are moved.

An MLP writes the sum over its neurons of activation times a fixed column of its last linear map. Attention does the
same with the entries of what its heads have read, which enter its last linear map. So an entry of either map's input is
one unit here, and equal numbers of them are equal numbers of columns written. Heads would not be a fair count: a head
writes with as many columns as it is wide. A chosen unit is moved at every token, as an edit would move it, so that what
sits at earlier tokens than those that line up in a contrast pair is reached too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.effects.outcome import outcome
from calibration.runs.layer_calls import changed_input, changed_output
from calibration.runs.resume import LateRun
from calibration.search.selection import Reading
from guard.families.architectures import architecture_of, widths

UnitKind = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Place:
    """Where units are: a layer's attention or MLP."""

    kind: UnitKind
    layer: int

    def modules(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The decoder layer, and in it the linear map whose input the units are."""
        architecture = architecture_of(model)
        layer = architecture.decoder_layers(model)[self.layer]
        output = architecture.attention_output if self.kind == "attention" else architecture.down_projection
        return layer, output(layer)

    def count(self, model: nn.Module) -> int:
        """How many units there are."""
        return widths(self.modules(model)[1])[0]


Weights = Mapping[Place, Tensor]


def places_of(layers: Sequence[int], *kinds: UnitKind) -> tuple[Place, ...]:
    """The places of `kinds` in `layers`, layer by layer."""
    return tuple(Place(kind, layer) for layer in layers for kind in kinds)


@dataclass(frozen=True)
class MovedRun:
    """A run with units moved: the read-out logits [2B, C, V], and the L2 norm of what was written beyond the run's own
    at all places, tokens and both rows of a request, [B].
    """

    logits: Tensor
    written: Tensor


@torch.inference_mode()
def mean_values(runs: Sequence[LateRun], places: Sequence[Place]) -> dict[Place, Tensor]:
    """The mean of each unit over the real tokens of `runs`, float32 [units]."""
    totals: dict[Place, Tensor] = {}

    def adding(place: Place, mask: Tensor) -> Callable[[Tensor], None]:
        def add(h: Tensor) -> None:
            totals[place] = totals.get(place, 0) + (h.float() * mask.to(h.device)[..., None]).sum((0, 1))

        return add

    tokens = 0
    for run in runs:
        mask = run.batch.attention_mask
        tokens += int(mask.sum())
        with ExitStack() as stack:
            for place in places:
                stack.enter_context(changed_input(*place.modules(run.model), adding(place, mask)))
            run.readout_logits()
    return {place: total / tokens for place, total in totals.items()}


@contextmanager
def moving(
    run: LateRun, weights: Weights, values: Mapping[Place, Tensor], written: list[Tensor] | None = None
) -> Iterator[None]:
    """Within the block, units are moved to `values` by `weights` [B, units] (0: not, 1: all the way) in runs of `run`.

    Gradients flow. Each place adds to `written`, if given, the squared norm of what it writes beyond its own, [B].
    """

    def move(place: Place) -> Callable[[Tensor], Tensor]:
        def change(h: Tensor) -> Tensor:
            moved = _moved(h, weights[place], values[place])
            if written is not None:
                written.append(_squared(_writes(run, place, h, moved), run))
            return moved

        return change

    with ExitStack() as stack:
        for place in weights:
            stack.enter_context(changed_input(*place.modules(run.model), move(place)))
        yield


@contextmanager
def misdirecting(
    run: LateRun, weights: Weights, values: Mapping[Place, Tensor], generator: torch.Generator
) -> Iterator[None]:
    """Within the block, each place of `weights` keeps its units and writes, at each token, as much beyond its own as
    `moving` would, in a random direction.
    """
    sizes: dict[Place, Tensor] = {}

    def measure(place: Place) -> Callable[[Tensor], None]:
        def read(h: Tensor) -> None:
            change = _writes(run, place, h, _moved(h, weights[place], values[place]))
            sizes[place] = change.norm(dim=-1, keepdim=True)  # [2B, T, 1]

        return read

    def add(place: Place) -> Callable[[Tensor], Tensor]:
        return lambda output: output + sizes[place] * random_directions(output, generator)

    with ExitStack() as stack:
        for place in weights:
            stack.enter_context(changed_input(*place.modules(run.model), measure(place)))
            stack.enter_context(changed_output(*place.modules(run.model), add(place)))
        yield


def random_directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random unit vectors of the shape of `like` [..., width], drawn on the CPU so that a seed means one thing."""
    drawn = torch.randn(like.shape, generator=generator).to(like)
    return nn.functional.normalize(drawn, dim=-1)


def _moved(h: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    return h + weights.repeat(2, 1)[:, None].to(h) * (values.to(h) - h)


def _writes(run: LateRun, place: Place, h: Tensor, moved: Tensor) -> Tensor:
    """What the moved units write beyond their own, [2B, T, d_model]; past the hooks, which would come round again."""
    _, module = place.modules(run.model)
    change: Tensor = module.forward(moved) - module.forward(h)
    return change


def _squared(change: Tensor, run: LateRun) -> Tensor:
    """Squared norm over a request's real tokens and both its rows, [B] float32, on the device of the batch."""
    mask = run.batch.attention_mask
    by_row = (change.float().square().sum(-1).to(mask.device) * mask).sum(-1)  # [2B]
    return by_row[: run.batch.size] + by_row[run.batch.size :]


@torch.inference_mode()
def moved_run(run: LateRun, weights: Weights, values: Mapping[Place, Tensor]) -> MovedRun:
    """One run with units moved as in `moving`."""
    written: list[Tensor] = []
    with moving(run, weights, values, written):
        logits = run.readout_logits()
    return MovedRun(logits, torch.stack(written).sum(0).sqrt())


def grow(
    runs: Sequence[LateRun],
    places: Sequence[Place],
    values: Mapping[Place, Tensor],
    sizes: Sequence[int],
    halves: Sequence[Tensor],
    lean: Reading = outcome,
) -> Tensor:
    """For each half of the requests, all units of `places` in the order in which they lower `lean`, int64 [2, units].

    `halves` says of each run's requests which half they are in, int64 [B] of 0 and 1. In rounds, one for each of the
    ascending `sizes` that the set is to have: by the linear effect given the units taken before, averaged over that
    half alone. Units that lower it in no round come last.
    """
    counts = [place.count(runs[0].model) for place in places]
    device = runs[0].residual.device
    taken = torch.zeros(2, sum(counts), device=device)
    keys = torch.zeros(2, sum(counts), dtype=torch.float64, device=device)  # the larger, the earlier
    requests = torch.stack([torch.cat([half == side for half in halves]).sum() for side in (0, 1)])
    for left, size in zip(range(len(sizes), 0, -1), sizes, strict=True):
        totals = torch.zeros_like(taken)
        for run, half in zip(runs, halves, strict=True):
            weights = taken[half].requires_grad_()  # [B, all units]
            with torch.enable_grad(), moving(run, by_place(weights, places, run.model), values):
                read = lean(run.readout_logits(), run.batch).sum()
            (gradient,) = torch.autograd.grad(read, weights)
            totals.index_add_(0, half, -gradient)
        scores = (totals / requests[:, None].clamp(min=1)).masked_fill(taken > 0, 0.0)
        missing = min(size, sum(counts)) - int(taken.sum(1).max())
        if missing > 0:
            best = scores.topk(missing, dim=1)
            found = best.values > 0
            key = left + best.values.double() / best.values.double().amax(1, keepdim=True).clamp(min=1e-300) / 2
            keys.scatter_add_(1, best.indices, torch.where(found, key, 0.0))
            taken.scatter_add_(1, best.indices, found.to(taken))
    return torch.where(taken > 0, keys, scores.double().clamp(max=0.0)).argsort(dim=1, descending=True, stable=True)


def first_of(order: Tensor, size: int) -> Tensor:
    """The first `size` units of each row of `order` int64 [rows, units], as weights 0 or 1 of the same shape."""
    return torch.zeros(order.shape, device=order.device).scatter(1, order[:, :size], 1.0)


def by_place(weights: Tensor, places: Sequence[Place], model: nn.Module) -> dict[Place, Tensor]:
    """Weights [rows, units of all places] as weights of each place."""
    return dict(zip(places, torch.split(weights, [place.count(model) for place in places], dim=1), strict=True))


def halved(runs: Sequence[LateRun], generator: torch.Generator) -> list[Tensor]:
    """Each request in one of two halves of equal size, drawn at random: int64 [B] of 0 and 1 for each run."""
    sizes = [run.batch.size for run in runs]
    drawn = (torch.randperm(sum(sizes), generator=generator) % 2).to(runs[0].residual.device)
    return list(torch.split(drawn, sizes))
