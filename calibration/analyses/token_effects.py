"""Token level: where in the template tail and the first response tokens the decision falls, and how long to edit.

The residual stream is patched at single tokens and at groups of them, both ways, at the tokens that line up between x
and x* whatever the lengths of their requests: counted from the end of the prompt, and through the forced response.
Tokens of the request itself do not line up, and are left out. The gate's own edit is then tried at one token alone, and
at the last prompt token with the first few response tokens, on Y and on greedy answers. A token can carry the decision
although patching it alone does nothing, where its neighbours carry it too; the windows show that.

Cost: runs from each layer to the end, 2 a token and group, so quadratic in depth, linear in tokens (at most 8 of the
tail) and pairs (at most 32); 8 times the validation answers generated (at most 64 requests); nothing in d_ff beyond a
run's own.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from calibration.analyses.subject import Subject
from calibration.effects.means import estimate_of_means, ratio
from calibration.effects.mediation import pair_effects
from calibration.effects.outcome import full_sequence_kl, outcome
from calibration.effects.statistics import bootstrap_estimate, bootstrap_estimates, wilson_estimate
from calibration.evidence.verdict import Examination, Output, outputs, surprise_limit
from calibration.judging.behaviour import Behaviour, refusal_openings
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import Mediator, TokenGroup
from calibration.runs.resume import LateRun
from calibration.runs.token_window import Window, windowed_edits
from calibration.runs.trial import edit_transforms, transformed
from calibration.search.findings import Advance
from guard.analyses.token_effects import EditedToken, TokenEffect, TokenEffects, WindowedEdit
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import LayerEdit
from guard.spec.measures import Estimate

PAIRS = 32  # of the patched layers
REQUESTS = 64  # of the gate's edit
TAIL_TOKENS = 8
GROUPS: tuple[TokenGroup, ...] = ("edited", "tail", "response")  # the others are single tokens
RESPONSE_TOKENS = (0, 1, 2, 4, 8, None)
EVERYWHERE = Window()


def windows() -> tuple[Window, ...]:
    """The windows that are tried, shortest first, the edit at every token last."""
    return (*(Window(0, tokens) for tokens in RESPONSE_TOKENS), EVERYWHERE)


def single_tokens(batches: Sequence[Batch]) -> range:
    """The tokens that line up, from the last prompt token (0): of the tail at most `TAIL_TOKENS`, of the response those
    that predict another.
    """
    longest = max(batch.continuation_width for batch in batches)
    return range(1 - min(batches[0].tail, TAIL_TOKENS), longest)


def effects_by_token(subject: Subject, advance: Advance) -> tuple[Estimate, tuple[TokenEffect, ...]]:
    """The total effect, and every layer's effects at single tokens and at groups, on calibration pairs."""
    split = subject.material.calibration
    pairs = list(zip(split.reference, split.harmful, strict=True))[: max(1, PAIRS // split.harmful[0].size)]
    tokens = [*single_tokens([harmful for _, harmful in pairs]), *GROUPS]
    layers = architecture_of(subject.model).num_layers(subject.model)
    wanted = [(layer, token) for layer in range(layers) for token in tokens]
    natural, total_natural, total = [], [], []
    for reference, harmful in pairs:
        there = {
            (layer, token): _mediator(harmful, layer, token)
            for layer, token in wanted
            if isinstance(token, str) or token < harmful.continuation_width
        }
        found = pair_effects(subject.model, reference, harmful, list(there.values()))
        total.append(next(iter(found.values())).total)
        absent = torch.zeros(harmful.size, device=total[-1].device)
        of = {place: found[mediator] for place, mediator in there.items()}
        natural.append(torch.stack([of[p].natural_indirect if p in of else absent for p in wanted], 1))
        total_natural.append(torch.stack([of[p].total_natural_indirect if p in of else absent for p in wanted], 1))
        advance(harmful.size)
    seed = subject.settings.seed
    estimates = [bootstrap_estimates(torch.cat(part).double().cpu(), seed=seed) for part in (natural, total_natural)]
    effects = tuple(
        TokenEffect(layer=layer, tokens=token, natural_indirect_effect=nie, total_natural_indirect_effect=tnie)
        for (layer, token), nie, tnie in zip(wanted, *estimates, strict=True)
    )
    return bootstrap_estimate(torch.cat(total).double().cpu(), seed=seed), effects


def _mediator(batch: Batch, layer: int, token: int | str) -> Mediator:
    """The stream that leaves `layer` at a group, or at the token so far from the last prompt token."""
    if isinstance(token, str):
        return Mediator("layer", layer, tokens=token)  # type: ignore[arg-type]  # one of GROUPS
    return Mediator("layer", layer, tokens=(batch.prompt_width - 1 + token,))


class EditedRuns:
    """The late layers of validation requests, run with the gate's edit in a window."""

    def __init__(self, subject: Subject, limit: int = REQUESTS) -> None:
        trigger, kept = subject.gate.trigger, subject.findings.late.validation
        self.edits = subject.edits
        self.harmful, self.benign = (kept[kind].where(trigger, limit=limit) for kind in ("harmful", "benign"))

    @torch.inference_mode()
    def outcomes(self, edits: Sequence[LayerEdit], window: Window) -> Tensor:
        """Y of each harmful request with `edits` in `window`, [requests] float64."""
        found = [
            outcome(_edited_logits(run, edits, active, window), run.batch)
            for run, active in zip(self.harmful.runs, self.harmful.active, strict=True)
        ]
        return torch.cat(found).double().cpu()

    def effects(self, window: Window) -> Tensor:
        """The controlled effect of the gate's edit in `window`, [requests] float64."""
        return self.outcomes((), window) - self.outcomes(self.edits, window)

    @torch.inference_mode()
    def divergences(self, window: Window) -> Tensor:
        """KL(without || with the gate's edit in `window`) over the model's own benign answers, [requests] float64."""
        found = []
        for run, active in zip(self.benign.runs, self.benign.active, strict=True):
            own = slice(0, run.batch.size)
            plain = run.readout_logits()[own]
            guarded = _edited_logits(run, self.edits, active, window)[own]
            found.append(full_sequence_kl(plain, guarded, run.batch.continuation_mask[own])[0])
        return torch.cat(found).double().cpu()


def _edited_logits(run: LateRun, edits: Sequence[LayerEdit], active: Tensor | None, window: Window) -> Tensor:
    rows, width = run.residual.shape[:2]
    inside = window.columns(run.batch.prompt_width, width, run.residual.device).expand(rows, -1)  # [2B, T]
    where = inside if active is None else inside & active
    with transformed(run.model, edit_transforms(edits, run.residual.device, where)):
        return run.readout_logits()


class Answers:
    """Greedy answers to validation requests, judged as the verdict judges them."""

    def __init__(self, subject: Subject) -> None:
        settings, encoder = subject.settings, subject.encoder
        self.subject = subject
        self.exam = Examination(
            model=subject.model,
            tokenizer=subject.tokenizer,
            harmful=tuple(encoder.prompt(pair.harmful) for pair in subject.sources.pairs.validation[:REQUESTS]),
            benign=(),
            benign_batches=(),
            refusals=refusal_openings(subject.material.refusals),
            budget=settings.budget,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        )
        own = outputs(self.exam, self.exam.harmful, nullcontext, float("inf"))
        self.limit = surprise_limit(own)
        self.compliance_off = _compliance(own)

    def compliance(self, window: Window) -> Estimate:
        """The share of harmful requests answered with the gate's edit in `window`."""
        model, trigger = self.subject.model, self.subject.gate.trigger

        def edited(prompt_width: int) -> AbstractContextManager[None]:
            return windowed_edits(model, self.subject.edits, trigger, window, prompt_width=prompt_width)

        return _compliance(outputs(self.exam, self.exam.harmful, nullcontext, self.limit, within=edited))


def _compliance(judged: Sequence[Output]) -> Estimate:
    return wilson_estimate(sum(output.behaviour is Behaviour.COMPLIED for output in judged), len(judged))


def measure(subject: Subject, advance: Advance) -> TokenEffects:
    """Effects by token, and of the gate's edit by token and by window."""
    whole, effects = effects_by_token(subject, advance)
    if not subject.edits:
        return TokenEffects(total_effect=whole, effects=effects, compliance_off=None, edited=(), windows=())
    runs, answers, seed = EditedRuns(subject), Answers(subject), subject.settings.seed
    everywhere = runs.effects(EVERYWHERE)

    def share(part: Tensor) -> Estimate:
        return estimate_of_means(torch.stack([part, everywhere], 1), ratio, seed=seed)

    edited = []
    for token in single_tokens(subject.material.validation.harmful):
        alone = runs.effects(Window(token, token))
        edited.append(EditedToken(token=token, effect=bootstrap_estimate(alone, seed=seed), share=share(alone)))
    measured = []
    for window in windows():
        part = runs.effects(window)
        measured.append(
            WindowedEdit(
                response_tokens=window.last,
                everywhere=window == EVERYWHERE,
                effect=bootstrap_estimate(part, seed=seed),
                share=share(part),
                harmful_compliance=answers.compliance(window),
                benign_kl=bootstrap_estimate(runs.divergences(window), seed=seed),
            )
        )
        advance(1)
    return TokenEffects(
        total_effect=whole,
        effects=effects,
        compliance_off=answers.compliance_off,
        edited=tuple(edited),
        windows=tuple(measured),
    )


def total(subject: Subject) -> int:
    """The steps that `measure` tells of: pairs, and windows."""
    batches = subject.material.calibration.harmful
    return sum(batch.size for batch in batches[: max(1, PAIRS // batches[0].size)]) + len(windows())
