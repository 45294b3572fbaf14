"""The effect on Y of a mediator at one layer and one token, by running it.

Cells of one layer and kind are put on the batch dimension: one run of the layers from there on for as many cells as
`TOKENS_AT_ONCE` allows. With more cells than `MOST_CELLS`, those with the largest linear effects are run and the others
keep their estimate, so that work grows with layers x tokens and not with its square.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from calibration.effects.outcome import outcome
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import Mediator, through
from calibration.runs.resume import LateRun, record

TOKENS_AT_ONCE = 4096
MOST_CELLS = 2048


def copied(batch: Batch, copies: int) -> Batch:
    """One request, `copies` times: rows 0..copies-1 carry the compliance, the others the refusal."""
    rows = torch.arange(2, device=batch.input_ids.device).repeat_interleave(copies)
    return replace(
        batch,
        input_ids=batch.input_ids[rows],
        attention_mask=batch.attention_mask[rows],
        position_ids=batch.position_ids[rows],
        continuation_mask=batch.continuation_mask[rows],
    )


class Copies:
    """Many runs of one request that differ in one thing each. `runs` are those of `readings.entering`."""

    def __init__(self, runs: Sequence[LateRun]) -> None:
        self.runs = runs
        self.model: nn.Module = runs[0].model
        self.batch: Batch = runs[0].batch
        with torch.inference_mode():
            self.outcome = float(outcome(runs[0].readout_logits(), self.batch))
        self._recorded: dict[int, LateRun] = {}

    @property
    def most(self) -> int:
        """How many runs are made at once."""
        return max(1, TOKENS_AT_ONCE // (2 * self.batch.input_ids.shape[1]))

    @torch.inference_mode()
    def outcomes(
        self, layer: int, count: int, installed: Callable[[Batch, Tensor], AbstractContextManager[object]]
    ) -> Tensor:
        """Y of `count` runs from `layer` on, [count] nats; `installed(batch, which)` puts in what they differ in.

        `batch` holds one request for each of the runs `which`, int64.
        """
        found = []
        size = min(self.most, 1 << (count - 1).bit_length())
        run = self._run(layer, size)
        for start in range(0, count, size):
            which = torch.arange(start, start + size, device=run.residual.device).clamp(max=count - 1)
            with installed(run.batch, which):
                found.append(outcome(run.readout_logits(), run.batch))
        return torch.cat(found)[:count]

    def effects_at(self, mediator: Mediator, columns: Tensor, values: Tensor, units: Tensor | None = None) -> Tensor:
        """Y - Y(do(mediator at column := value)), [n] nats: `columns` int64 [n], `values` [2, n, width].

        With `units` int64 [n], only that entry of the mediator is replaced, and `values` is [2, n].
        """

        def installed(batch: Batch, which: Tensor) -> AbstractContextManager[object]:
            rows = torch.arange(2 * batch.size, device=which.device)
            at, value = columns[which].repeat(2), values[:, which].flatten(0, 1)  # [2 runs], [2 runs, ...]
            place = (rows, at) if units is None else (rows, at, units[which].repeat(2))

            def change(stream: Tensor) -> Tensor:
                changed = stream.clone()
                changed[place] = value.to(stream)
                return changed

            return through(self.model, mediator, change)

        return self.outcome - self.outcomes(mediator.layer, len(columns), installed)

    def _run(self, layer: int, copies: int) -> LateRun:
        """`copies` of the request as it enters `layer`."""
        if copies not in self._recorded:
            self._recorded[copies] = record(self.model, copied(self.batch, copies), 0)
        wide = self._recorded[copies]
        residual = self.runs[layer].residual.repeat_interleave(copies, dim=0)  # [2 copies, T, d_model]
        return LateRun(self.model, wide.batch, layer, residual, wide.arguments[layer:])


def strongest(linear: Tensor, most: int) -> Tensor:
    """Which entries of `linear` are worth running: all where there are at most `most`, else the largest; bool."""
    chosen = torch.zeros(linear.numel(), dtype=torch.bool, device=linear.device)
    chosen[linear.abs().flatten().topk(min(most, linear.numel())).indices] = True
    return chosen.view(linear.shape)
