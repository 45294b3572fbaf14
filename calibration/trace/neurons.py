"""The neurons through which Y turns on one prompt, what excites each, and what each writes.

Gradients screen all neurons of the model; those worth it are run, by the exact paths of `suffix.py`. A neuron is
replaced by 0, at every token, which is what `--set L.N=0` does; with another prompt, by its value there, at the tokens
that line up.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from calibration.effects.exact.late_trace import record_trace
from calibration.effects.exact.suffix import traced_effects
from calibration.runs.interventions import Kind, Mediator
from calibration.trace.cells import Copies, strongest
from calibration.trace.document import Neuron
from calibration.trace.gradients import Gradients
from calibration.trace.subject import Subject
from calibration.trace.written import Writer

SCREENED = 32
EACH_LAYER = 8
MOST_RUN = 256
MOST_CELLS = 256

Values = Mapping[tuple[Kind, int], Tensor]
Named = Mapping[int, Sequence[int]]
Role = Literal["found", "gate", "set"]
Place = tuple[int, int]


class Neurons:
    """All neurons of a model on one prompt. `other` are the values of the other prompt's run, None without one."""

    def __init__(self, subject: Subject, gradients: Gradients, other: Values | None, copies: Copies) -> None:
        self.subject, self.gradients, self.other, self.copies = subject, gradients, other, copies
        self.writer = Writer(subject, gradients)
        edited = subject.batch.edited
        self.edited = list(range(edited.start, edited.stop))

    def found(self, gate: Named, sets: Named) -> tuple[Neuron, ...]:
        """The strongest of each layer, those of a spec's `gate` and those that are set; by layer, strongest first."""
        linear: dict[Place, float] = {}
        for layer in range(len(self.writer.layers)):
            effects = self._linear(layer, self.edited).sum(0)  # [d_ff]
            screened = effects.abs().topk(min(SCREENED, len(effects))).indices.tolist()
            for neuron in (*gate.get(layer, ()), *sets.get(layer, ()), *screened):
                linear[layer, neuron] = float(effects[neuron])
        exact = self._exact(linear)
        effects_of = linear | exact
        shown: dict[int, list[int]] = {}
        for layer, neuron in sorted(effects_of, key=lambda place: -abs(effects_of[place])):
            named = neuron in gate.get(layer, ()) or neuron in sets.get(layer, ())
            if named or len(shown.setdefault(layer, [])) < EACH_LAYER:
                shown.setdefault(layer, []).append(neuron)
        at_columns = self._exact_by_column(effects_of)
        return tuple(
            neuron.model_copy(
                update={
                    "effect": effects_of[place],
                    "run": place in exact,
                    "role": _role(neuron.neuron, sets.get(layer, ()), gate.get(layer, ())),
                    "by_column": at_columns.get(place, neuron.by_column),
                    "run_by_column": place in at_columns,
                }
            )
            for layer in sorted(shown)
            for neuron in self._looked_at(layer, shown[layer])
            for place in [(layer, neuron.neuron)]
        )

    def _replacement(self, layer: int, columns: list[int]) -> Tensor:
        """What the neurons of a layer are replaced with: [2, columns, d_ff], or 0 [1]."""
        values = self.gradients.values["neurons", layer]
        return values.new_zeros(1) if self.other is None else self.other["neurons", layer][:, columns]

    def _linear(self, layer: int, columns: list[int]) -> Tensor:
        """Linear effects of a layer's neurons, [columns, d_ff] nats."""
        return self.gradients.linear("neurons", layer, self._replacement(layer, columns), columns)

    def _exact(self, linear: Mapping[Place, float]) -> dict[Place, float]:
        """Exact effects, nats, of the `MOST_RUN` neurons with the largest linear ones."""
        places = list(linear)
        worth = strongest(torch.tensor([linear[place] for place in places]), MOST_RUN).tolist()
        run = [place for place, is_worth in zip(places, worth, strict=True) if is_worth]
        trace = record_trace(self.subject.model, self.subject.batch, min(layer for layer, _ in run))
        exact: dict[Place, float] = {}
        for layer in sorted({layer for layer, _ in run}):
            neurons = [neuron for at, neuron in run if at == layer]
            values = self._replacement(layer, self.edited)
            effects = traced_effects(trace, layer, neurons, values if self.other is None else values[..., neurons])[0]
            exact |= {(layer, neuron): float(effect) for neuron, effect in zip(neurons, effects, strict=True)}
        return exact

    def _exact_by_column(self, effects: Mapping[Place, float]) -> dict[Place, tuple[float | None, ...]]:
        """Exact effects at each column alone, of as many of the strongest neurons as `MOST_CELLS` allows."""
        aligned = list(self.subject.aligned)
        count = max(1, MOST_CELLS // len(aligned))
        chosen = sorted(effects, key=lambda place: -abs(effects[place]))[:count]
        missing = (None,) * (len(self.subject.columns) - len(aligned))
        found: dict[Place, tuple[float | None, ...]] = {}
        for layer in {layer for layer, _ in chosen}:
            neurons = [neuron for at, neuron in chosen if at == layer]
            columns = torch.tensor(aligned, device=self.gradients.values["neurons", layer].device).repeat(len(neurons))
            units = torch.tensor(neurons, device=columns.device).repeat_interleave(len(aligned))
            replacement = self._replacement(layer, aligned)
            values = replacement.new_zeros(2, len(units))
            if self.other is not None:
                values = replacement[:, :, neurons].transpose(1, 2).flatten(1)  # [2, neurons x columns]
            alone = self.copies.effects_at(Mediator("neurons", layer), columns, values, units)
            for neuron, row in zip(neurons, alone.view(len(neurons), -1).tolist(), strict=True):
                found[layer, neuron] = missing + tuple(row)
        return found

    def _looked_at(self, layer: int, neurons: list[int]) -> list[Neuron]:
        """The neurons with what excites them and what they write; their effects are linear here."""
        subject, prompt = self.subject, list(self.subject.prompt_columns)
        h = self.gradients.values["neurons", layer][0][:, neurons].float().T  # [n, T]
        activations = h[:, prompt]
        peaks = activations.abs().argmax(1)  # [n]
        written = self.writer.tokens(layer, neurons, activations.gather(1, peaks[:, None])[:, 0])
        others: list[list[float]] | None = None
        if self.other is not None and subject.other is not None:
            on_other = self.other["neurons", layer][0, : subject.batch.prompt_width][:, neurons].float().T
            others = on_other[:, -len(subject.other) :].tolist()
        aligned = list(subject.aligned)
        by_column = self._linear(layer, aligned)[:, neurons].T.tolist()  # [n, aligned columns]
        missing = (None,) * (len(subject.columns) - len(aligned))
        return [
            Neuron(
                layer=layer,
                neuron=neuron,
                effect=sum(by_column[place]),
                run=False,
                role="found",
                activations=tuple(activations[place].tolist()),
                other=None if others is None else tuple(others[place]),
                by_column=missing + tuple(by_column[place]),
                run_by_column=False,
                peak=int(peaks[place]),
                promoted=written[place][0],
                demoted=written[place][1],
            )
            for place, neuron in enumerate(neurons)
        ]


def _role(neuron: int, sets: Sequence[int], gate: Sequence[int]) -> Role:
    return "set" if neuron in sets else "gate" if neuron in gate else "found"
