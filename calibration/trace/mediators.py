"""Effects on Y by layer and module: at all aligned tokens together, and at each token alone.

With another prompt x, a mediator takes the values it has there: TNIE, and NIE the other way. Without one, there is no
value that is right, and none of the usual ones is free: 0 takes the stream to where no prompt takes it. So a module's
output is replaced by its mean over the prompt's own tokens, which keeps what it writes everywhere and takes what it
writes here. The first token is left out of the mean: many models park there an activation hundreds of times the size
of any other. A whole layer's output at all tokens is then not replaced, since nothing would be left of the prompt.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from calibration.effects.mediation import pair_effects
from calibration.effects.outcome import outcome
from calibration.runs.interventions import Kind, Mediator, patching
from calibration.trace.cells import MOST_CELLS, Copies, strongest
from calibration.trace.document import VIEWS, Map, ModuleEffect, View
from calibration.trace.gradients import Gradients
from calibration.trace.subject import Subject

Values = Mapping[tuple[Kind, int], Tensor]


class Mediators:
    """All layers and modules of a model on one prompt. `other` are the values of the other prompt's run, or None."""

    def __init__(self, subject: Subject, gradients: Gradients, other: Values | None, copies: Copies) -> None:
        self.subject, self.gradients, self.other, self.copies = subject, gradients, other, copies
        self.layers = len(copies.runs) - 1

    def replacement(self, kind: Kind, layer: int, columns: list[int]) -> Tensor:
        """What a mediator is replaced with: [2, columns, width]."""
        if self.other is not None:
            return self.other[kind, layer][:, columns]
        prompt = list(self.subject.prompt_columns)
        mean = self.gradients.values[kind, layer][0, prompt[1:] or prompt].mean(0)  # [width]
        return mean.expand(2, len(columns), -1)

    def modules(self) -> tuple[ModuleEffect, ...]:
        """What each attention and MLP carries at all aligned tokens, and each layer where there is another prompt."""
        subject = self.subject
        if subject.reference is not None:
            mediators = [Mediator(view, layer) for layer in range(self.layers) for view in VIEWS]
            found = pair_effects(subject.model, subject.reference, subject.batch, mediators)
            return tuple(
                ModuleEffect(
                    layer=mediator.layer,
                    kind=view_of(mediator),
                    removed=float(effects.total_natural_indirect),
                    brought=float(effects.natural_indirect),
                )
                for mediator, effects in found.items()
            )
        kinds: tuple[View, ...] = ("attention", "mlp")
        return tuple(self._ablated(kind, layer) for layer in range(self.layers) for kind in kinds)

    @torch.inference_mode()
    def _ablated(self, kind: View, layer: int) -> ModuleEffect:
        subject, run = self.subject, self.copies.runs[layer]
        columns = list(subject.aligned)
        mediator = Mediator(kind, layer, tokens=tuple(columns))
        with patching(subject.model, subject.batch, {mediator: self.replacement(kind, layer, columns)}):
            after = float(outcome(run.readout_logits(), run.batch))
        return ModuleEffect(layer=layer, kind=kind, removed=self.copies.outcome - after, brought=None)

    def maps(self) -> tuple[Map, ...]:
        """The effect at each layer and column, for layers' outputs, attention and MLPs."""
        aligned = list(self.subject.aligned)
        linear = torch.stack(
            [
                torch.stack(
                    [
                        self.gradients.linear(view, layer, self.replacement(view, layer, aligned), aligned).sum(-1)
                        for layer in range(self.layers)
                    ]
                )
                for view in VIEWS
            ]
        )  # [views, layers, aligned columns]
        run = strongest(linear, MOST_CELLS)
        effects = linear.clone()
        for place, view in enumerate(VIEWS):
            for layer in range(self.layers):
                chosen = run[place, layer]  # [aligned columns]
                if chosen.any():
                    columns = torch.tensor(aligned, device=chosen.device)[chosen]
                    values = self.replacement(view, layer, columns.tolist())
                    exact = self.copies.effects_at(Mediator(view, layer), columns, values)
                    effects[place, layer, chosen] = exact.to(effects)
        missing = len(self.subject.columns) - len(aligned)
        return tuple(
            Map(
                view=view,
                effects=tuple((None,) * missing + tuple(row) for row in effects[place].tolist()),
                run=tuple((False,) * missing + tuple(row) for row in run[place].tolist()),
            )
            for place, view in enumerate(VIEWS)
        )


def view_of(mediator: Mediator) -> View:
    """The mediator's kind, where it is a layer or a module."""
    return next(view for view in VIEWS if view == mediator.kind)
