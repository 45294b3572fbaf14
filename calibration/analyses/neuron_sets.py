"""Joint and single controlled effects of sets of late neurons that are moved to one value each, at every token.

A set may differ from request to request, so that sets chosen on some are measured on others in one run. Only the late
layers are run. Neurons are counted through all late layers: layer by layer, n in all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.analyses.unit_groups import refusing_less
from calibration.analyses.units import Place, by_place, grow, halved, mean_values, moving, places_of
from calibration.effects.exact.late_trace import LateTrace, record_trace
from calibration.effects.exact.suffix import traced_effects
from calibration.runs.resume import LateRun
from calibration.search.selection import Reading
from guard.spec.edit_spec import LayerEdit


@dataclass(frozen=True)
class Order:
    """The late neurons, those that carry most first: for each request by the half of the requests that it is not in,
    `apart` int64 [requests, n], and by the mean place in both halves' orders, `overall` int64 [n].
    """

    apart: Tensor
    overall: Tensor


class NeuronSets:
    """The late runs of harmful requests, and the value that each late neuron is moved to: `values`, or its mean over
    the real tokens of the runs `plain`.
    """

    def __init__(
        self,
        runs: Sequence[LateRun],
        plain: Sequence[LateRun] = (),
        values: Mapping[Place, Tensor] | None = None,
    ) -> None:
        self.runs, self.model = runs, runs[0].model
        first = runs[0].first_layer
        self.layers = tuple(range(first, first + len(runs[0].arguments)))
        self.places = places_of(self.layers, "mlp")
        self.values = dict(values) if values is not None else mean_values(plain, self.places)
        self.widths = [place.count(self.model) for place in self.places]
        self.count = sum(self.widths)
        with torch.inference_mode():
            self.base = [run.readout_logits() for run in runs]

    def order(self, sizes: Sequence[int], generator: torch.Generator) -> Order:
        """The neurons ordered on each of two random halves of the requests, in rounds up to each of `sizes`."""
        halves = halved(self.runs, generator)
        orders = grow(self.runs, self.places, self.values, sizes, halves, refusing_less).cpu()  # [2, n]
        ranks = orders.argsort(dim=1).double()
        return Order(orders[1 - torch.cat(halves).cpu()], ranks.mean(0).argsort(stable=True))

    @torch.inference_mode()
    def effect(self, weights: Tensor, lean: Reading = refusing_less) -> Tensor:
        """What `lean` loses when the neurons of weight 1 in `weights` ([requests or 1, n]) move, float64 [requests]."""
        found, start = [], 0
        requests = sum(run.batch.size for run in self.runs)
        for run, base in zip(self.runs, self.base, strict=True):
            own = weights.expand(requests, -1)[start : start + run.batch.size].to(run.residual)
            start += run.batch.size
            with moving(run, by_place(own, self.places, self.model), self.values):
                found.append(lean(base, run.batch) - lean(run.readout_logits(), run.batch))
        return torch.cat(found).double().cpu()

    @torch.no_grad()
    def single(self, neurons: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
        """Exact effects on Y of `neurons` int64 [k] one by one, float64 [requests, k], at the tokens that line up.

        First in: alone. Last in: on top of all of `core`, or of its others, left at their values as edits leave them.
        """
        edits = self._edits(core)
        first, last = [], []
        for run in self.runs:
            plain = record_trace(self.model, run.batch, self.layers[0])
            edited = record_trace(self.model, run.batch, self.layers[0], edits=edits)
            first.append(self._effects(plain, plain, neurons, torch.zeros_like(neurons, dtype=torch.bool)))
            last.append(self._effects(edited, plain, neurons, torch.isin(neurons, core)))
        return torch.cat(first), torch.cat(last)

    def _effects(self, trace: LateTrace, plain: LateTrace, neurons: Tensor, back: Tensor) -> Tensor:
        """Effects [B, k] of moving neurons in the run of `trace`; where `back`, of no return to `plain`."""
        batch = trace.packing.batch
        found = torch.zeros(batch.size, len(neurons), dtype=torch.float64)
        starts = torch.tensor([0, *self.widths]).cumsum(0)
        for place, start in zip(self.places, starts, strict=False):
            here = ((neurons >= start) & (neurons < start + place.count(self.model))).nonzero().flatten()
            for returns in (False, True):
                some = here[back[here] == returns]
                if len(some) == 0:
                    continue
                own = (neurons[some] - start).to(self.values[place].device)
                if returns:
                    values, sign = _spread(plain, place.layer, own), -1.0
                else:
                    values, sign = self.values[place][own], 1.0
                effects = traced_effects(trace, place.layer, own, values)
                found[:, some] = sign * effects.double().cpu()
        return found

    def _edits(self, chosen: Tensor) -> tuple[LayerEdit, ...]:
        """The edits that hold the neurons `chosen` int64 [k] at their values."""
        weights = torch.zeros(self.count).index_fill(0, chosen, 1.0)
        edits = []
        for place, own in zip(self.places, torch.split(weights, self.widths), strict=True):
            neurons = own.nonzero().flatten()
            if len(neurons):
                held = tuple(self.values[place].cpu()[neurons].tolist())
                edits.append(
                    LayerEdit(layer=place.layer, neurons=tuple(neurons.tolist()), scale=(1.0,) * len(held), lower=held,
                              upper=held)
                )  # fmt: skip
        return tuple(edits)


def _spread(trace: LateTrace, layer: int, neurons: Tensor) -> Tensor:
    """What `neurons` [k] are in the run of `trace` at the edited columns of a batch's rows, [2B, T_edited, k]."""
    batch = trace.packing.batch
    packed = trace.neurons[layer][..., neurons]  # [B, S, k]
    tail = packed[:, : batch.tail]
    after = packed[:, batch.tail :].chunk(2, dim=1)
    return torch.cat([torch.cat([tail, response], dim=1) for response in after])
