"""What a spec's guard does on one prompt: where its trigger is active, what it changes there, and what that is worth.

Column by column, along the reply that complies: that is the run in which the guard has something to prevent. Its effect
at a single column is run, not estimated, for as many columns as `cells.MOST_CELLS` allows.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from calibration.prompts.sequences import Batch
from calibration.runs.interventions import editing
from calibration.runs.trial import edit_transforms
from calibration.trace.cases import active_tokens, trigger_scores
from calibration.trace.cells import Copies
from calibration.trace.document import GuardAtWork, GuardedLayer
from calibration.trace.gradients import Gradients
from calibration.trace.subject import Subject
from guard.spec.edit_spec import EditSpec


@torch.inference_mode()
def guard_at_work(subject: Subject, spec: EditSpec, gradients: Gradients, copies: Copies) -> GuardAtWork:
    """The guard of `spec` on the subject's prompt, against the plain model."""
    batch, columns = subject.batch, list(subject.columns)
    scores = trigger_scores(subject, batch, spec)
    active = active_tokens(subject, batch, spec)
    everywhere = batch.attention_mask.bool() if active is None else active  # [2, P + C]
    changed = {edit.layer: _changed(gradients, spec, edit.layer, everywhere)[columns] for edit in spec.layers}
    total = torch.stack([*changed.values(), torch.zeros(len(columns), dtype=torch.int64)]).sum(0)
    acting = [column for column, count in zip(columns, total.tolist(), strict=True) if count]
    effects = dict(zip(acting, _effects(spec, everywhere, copies, acting), strict=True))
    return GuardAtWork(
        trigger_layer=None if spec.trigger is None else spec.trigger.layer,
        threshold=None if spec.trigger is None else spec.trigger.threshold,
        scores=None if scores is None else tuple(scores[0, columns].tolist()),
        active=tuple(everywhere[0, columns].tolist()),
        layers=tuple(
            GuardedLayer(layer=edit.layer, neurons=len(edit.neurons), changed=tuple(changed[edit.layer].tolist()))
            for edit in spec.layers
        ),
        effects=tuple(effects.get(column) for column in columns),
    )


def _changed(gradients: Gradients, spec: EditSpec, layer: int, active: Tensor) -> Tensor:
    """How many neurons of `layer` the edit alone changes at each column, by the plain run's values: int64 [P + C].

    On the compliance row, or where its reply has ended, the refusal row.
    """
    h = gradients.values["neurons", layer]  # [2, T, d_ff]
    edits = [edit for edit in spec.layers if edit.layer == layer]
    edited = edit_transforms(edits, h.device, active[:, : h.shape[1]])[layer](h.clone())
    return (edited != h).sum(-1).amax(0).cpu()


def _effects(spec: EditSpec, active: Tensor, copies: Copies, columns: list[int]) -> list[float]:
    """Y - Y(do(edit at one column)) for each of `columns`, nats."""
    if not columns:
        return []
    at = torch.tensor(columns, device=active.device)

    def installed(batch: Batch, which: Tensor) -> AbstractContextManager[object]:
        alone = torch.zeros(batch.input_ids.shape, dtype=torch.bool, device=active.device)
        rows, column = torch.arange(2 * batch.size, device=active.device), at[which].repeat(2)
        of_row = torch.arange(2, device=active.device).repeat_interleave(batch.size)
        alone[rows, column] = active[of_row, column]
        return editing(copies.model, batch, spec.layers, alone)

    outcomes = copies.outcomes(min(edit.layer for edit in spec.layers), len(columns), installed)
    return [copies.outcome - after for after in outcomes.tolist()]
