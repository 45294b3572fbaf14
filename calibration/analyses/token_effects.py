"""Token level: where in the template tail and the first response tokens the decision falls, and how long to edit.

The residual stream is patched at single tokens and at groups of them, both ways, at the tokens that line up between x
and x* whatever the lengths of their requests: counted from the end of the prompt, and through the forced response.
Tokens of the request itself do not line up, and are left out. The gate's own edit is then tried at one token alone, and
at the last prompt token with the first few response tokens, on Y and on greedy answers. A token can carry the decision
although patching it alone does nothing, where its neighbours carry it too; the windows show that.

Tokens are counted from the last prompt token, which is 0: those of the template tail before it are below 0, the first
response token is 1. Effects in nats of Y; a share is of the effect of the edit at every token.

Cost: runs from each layer to the end, 2 a token and group, so quadratic in depth, linear in tokens (at most 8 of the
tail) and pairs (at most 32); 8 times the validation answers generated (at most 64 requests); nothing in d_ff beyond a
run's own.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from calibration.analyses.analysis import Analysis, Numbers, Section
from calibration.analyses.subject import Subject
from calibration.effects.means import estimate_of_means, ratio
from calibration.effects.mediation import pair_effects
from calibration.effects.outcome import full_sequence_kl, outcome
from calibration.effects.statistics import bootstrap_estimate, bootstrap_estimates, wilson_estimate
from calibration.evidence.verdict import Examination, Output, outputs, surprise_limit
from calibration.judging.behaviour import Behaviour, refusal_openings
from calibration.prompts.sequences import Batch
from calibration.report.display import TOKEN_GROUP_NAMES, estimate, number, percent, plural, share
from calibration.report.plot_parts import Json, Plot, axis, layout, points, whiskers
from calibration.runs.interventions import Mediator, TokenGroup
from calibration.runs.resume import LateRun
from calibration.runs.token_window import Window, windowed_edits
from calibration.runs.trial import edit_transforms, transformed
from calibration.search.findings import Advance
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import LayerEdit
from guard.spec.measures import Count, Estimate, Frozen

SUFFICES = 0.9


class TokenEffect(Frozen):
    """Natural indirect effects of the residual stream that leaves `layer`, patched at one token or a group of them."""

    layer: Count
    tokens: int | Literal["edited", "tail", "response"]
    natural_indirect_effect: Estimate
    total_natural_indirect_effect: Estimate


class EditedToken(Frozen):
    """The controlled effect of the gate's edit at one token alone."""

    token: int
    effect: Estimate
    share: Estimate


class WindowedEdit(Frozen):
    """The gate's edit at the last prompt token and the first `response_tokens` (None: all) response tokens.

    `everywhere`: at the whole prompt too, as it is deployed. Compliance is that of greedy answers; the KL is over
    benign answers.
    """

    response_tokens: Count | None
    everywhere: bool = False
    effect: Estimate
    share: Estimate
    harmful_compliance: Estimate
    benign_kl: Estimate


class TokenEffects(Numbers):
    """Effects by layer and token on calibration pairs; the gate's edit by token and by window on validation requests.

    They claim nothing: a decision falls somewhere in any case. Without a gate `edited` and `windows` are empty. A
    pair without a token, its continuations being shorter, counts as having no effect there, which is what patching it
    does.
    """

    total_effect: Estimate
    effects: tuple[TokenEffect, ...] = Field(min_length=1)
    compliance_off: Estimate | None
    edited: tuple[EditedToken, ...]
    windows: tuple[WindowedEdit, ...]

    @property
    def single(self) -> tuple[TokenEffect, ...]:
        """The effects at one token."""
        return tuple(effect for effect in self.effects if isinstance(effect.tokens, int))

    @property
    def decisive(self) -> EditedToken | None:
        """The token at which the edit alone takes most; None without a gate."""
        return max(self.edited, key=lambda token: token.effect.value, default=None)

    @property
    def deployed(self) -> WindowedEdit | None:
        """The edit at every token; None without a gate."""
        return next((window for window in self.windows if window.everywhere), None)

    @property
    def enough(self) -> WindowedEdit | None:
        """The shortest window that suffices; None where only the whole conversation does.

        Its share is at least `SUFFICES` beyond the interval, and the compliance it leaves is not above the deployed
        edit's beyond both intervals.
        """
        deployed = self.deployed
        for window in self.windows:
            if deployed is None or window.everywhere:
                break
            as_good = window.harmful_compliance.low <= deployed.harmful_compliance.high
            if window.share.low >= SUFFICES and as_good:
                return window
        return None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.windows and (self.deployed is None or self.compliance_off is None or not self.edited):
            raise ValueError("windows of an edit are compared with the edit everywhere, by token, and with none")
        return self


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

    def share_of(part: Tensor) -> Estimate:
        return estimate_of_means(torch.stack([part, everywhere], 1), ratio, seed=seed)

    edited = []
    for token in single_tokens(subject.material.validation.harmful):
        alone = runs.effects(Window(token, token))
        edited.append(EditedToken(token=token, effect=bootstrap_estimate(alone, seed=seed), share=share_of(alone)))
    measured = []
    for window in windows():
        part = runs.effects(window)
        measured.append(
            WindowedEdit(
                response_tokens=window.last,
                everywhere=window == EVERYWHERE,
                effect=bootstrap_estimate(part, seed=seed),
                share=share_of(part),
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


MOST_LABELS = 12
MOST_CELL_LABELS = 8


def describe(measured: TokenEffects) -> Section:
    """The section, its figures with their numbers."""
    plots = [heat_map(measured, noising=True), heat_map(measured, noising=False)]
    if measured.windows:
        plots += [by_token(measured), by_window(measured)]
    return Section("Token level", paragraphs(measured), tuple(plots))


def paragraphs(measured: TokenEffects) -> tuple[str, ...]:
    """What was found, in sentences that say no where the answer is no."""
    top = max(measured.single, key=lambda effect: effect.total_natural_indirect_effect.value)
    found = [
        "Each layer's output was patched at one token at a time, at the tokens that line up between x and x*: counted "
        "from the end of the prompt, and through the forced response. Of single tokens, the harmful run loses most at "
        f"{token_name(top.tokens)} in layer {top.layer}: {estimate(top.total_natural_indirect_effect)} of "
        f"{estimate(measured.total_effect)} nats."
    ]
    if measured.decisive is not None:
        found.append(
            f"Of the gate's edit at one token alone, {token_name(measured.decisive.token)} takes most: "
            f"{share(measured.decisive.share)} of the effect of the edit at every token."
        )
        found.append(sufficiency(measured))
    return tuple(found)


def sufficiency(measured: TokenEffects) -> str:
    """Whether a clamp of the first few tokens suffices, in one sentence."""
    enough, deployed = measured.enough, measured.deployed
    if deployed is None:
        return "No gate was found, so no clamp was tried."
    if enough is None:
        longest = [window for window in measured.windows if not window.everywhere][-1]
        return (
            "No clamp from the last prompt token on suffices: with all response tokens it takes "
            f"{share(longest.share)} of the effect and leaves harmful compliance at "
            f"{percent(longest.harmful_compliance.value)}; the edit at every token leaves "
            f"{percent(deployed.harmful_compliance.value)}."
        )
    return (
        f"A clamp on {window_name(enough)} takes {share(enough.share)} of the effect and leaves harmful compliance at "
        f"{percent(enough.harmful_compliance.value)}, as against {percent(deployed.harmful_compliance.value)} with the "
        f"edit at every token; its benign KL is {number(enough.benign_kl.value)} as against "
        f"{number(deployed.benign_kl.value)} nats."
    )


def token_name(token: int | str) -> str:
    """A token or group in words."""
    if isinstance(token, str):
        return TOKEN_GROUP_NAMES[token]
    if token == 0:
        return "the last prompt token"
    return f"response token {token}" if token > 0 else f"the prompt token {-token} before the last"


def short_name(token: int) -> str:
    """A token on an axis."""
    return "last prompt" if token == 0 else f"response {token}" if token > 0 else f"prompt −{-token}"


def window_name(window: WindowedEdit) -> str:
    """A window in words."""
    if window.everywhere:
        return "every token"
    if window.response_tokens is None:
        return "the last prompt token and all response tokens"
    if window.response_tokens == 0:
        return "the last prompt token alone"
    return f"the last prompt token and the first {plural(window.response_tokens, 'response token')}"


def heat_map(measured: TokenEffects, *, noising: bool) -> Plot:
    """Effects by layer and single token: TNIE (`noising`) or NIE."""
    kind = "TNIE" if noising else "NIE"
    name = "token-heat-noising" if noising else "token-heat-denoising"
    effects = {
        (e.tokens, e.layer): e.total_natural_indirect_effect if noising else e.natural_indirect_effect
        for e in measured.effects
    }
    tokens = sorted({effect.tokens for effect in measured.single if isinstance(effect.tokens, int)})
    layers = sorted({effect.layer for effect in measured.effects})
    values = [[effects[token, layer].value for layer in layers] for token in tokens]
    largest = max(abs(value) for row in values for value in row) or 1.0
    heat: Json = {
        "type": "heatmap", "x": layers, "y": [short_name(token) for token in tokens], "z": values, "xgap": 2, "ygap": 2,
        "zmin": -largest, "zmax": largest, "colorscale": [[0, "$two"], [0.5, "$empty"], [1, "$one"]],
        "showscale": False, "hovertemplate": "layer %{x}, %{y}: %{z:.3g} nats<extra></extra>",
    }  # fmt: skip
    if len(layers) <= MOST_CELL_LABELS:
        heat |= {"text": [[f"{value + 0.0:.1f}".replace("-", "−") for value in row] for row in values],
                 "texttemplate": "%{text}", "textfont": {"size": 11}}  # fmt: skip
    ticks = layers[:: max(1, -(-len(layers) // MOST_LABELS))]
    shape = layout(
        90 + 26 * len(tokens),
        axis("layer", tickvals=ticks, ticktext=[str(tick) for tick in ticks], zeroline=False, showgrid=False),
        axis("", showgrid=False, autorange="reversed", type="category"),
    )
    top = max(((token, layer) for token in tokens for layer in layers), key=lambda place: effects[place].value)
    label = (
        f"{kind} of each layer's output at single tokens, in nats; the largest is {number(effects[top].value)} in "
        f"layer {top[1]} at {token_name(top[0])}."
    )
    note = "Noising: what the harmful run loses." if noising else "Denoising: what the reference run gains."
    rows = tuple(
        (str(effect.layer), token_name(effect.tokens), estimate(effects[effect.tokens, effect.layer]))
        for effect in measured.effects
    )
    return Plot(name, label, [heat], shape, ("layer", "tokens", f"{kind}, nats"), rows, note)


def by_token(measured: TokenEffects) -> Plot:
    """The gate's edit at one token alone."""
    names = [short_name(edited.token) for edited in measured.edited]
    shares = [edited.share for edited in measured.edited]
    bars: Json = {
        "type": "bar", "x": names, "y": [100 * value.value for value in shares], "marker": {"color": "$one"},
        "error_y": whiskers(shares, "$text", 100.0), "text": [share(value) for value in shares], "textposition": "none",
        "hovertemplate": "%{x}: %{text}<extra></extra>",
    }  # fmt: skip
    best = measured.edited[max(range(len(shares)), key=lambda place: shares[place].value)]
    label = (
        "Share of the edit's effect that it has at one token alone; the largest is "
        f"{share(best.share)}, at {token_name(best.token)}."
    )
    shape = layout(300, axis("", type="category", tickangle=-45), axis("share of the effect, %"), showlegend=False)
    rows = tuple((token_name(e.token), estimate(e.effect), share(e.share)) for e in measured.edited)
    return Plot("edit-by-token", label, [bars], shape, ("edited token", "CE, nats", "share"), rows)


def by_window(measured: TokenEffects) -> Plot:
    """The gate's edit at the last prompt token and the first k response tokens: effect and compliance."""
    ticks = [
        "every token" if w.everywhere else "all" if w.response_tokens is None else str(w.response_tokens)
        for w in measured.windows
    ]
    traces = []
    for name, colour, symbol, values in (
        ("share of the effect", "$one", "circle", [w.share for w in measured.windows]),
        ("harmful compliance left", "$off", "square", [w.harmful_compliance for w in measured.windows]),
    ):
        style = points(name, [], [], colour, symbol, mode="lines+markers", error_y=whiskers(values, colour, 100.0))
        traces.append(
            style | {"x": ticks, "y": [100 * value.value for value in values],
                     "hovertemplate": "%{x}: %{y:.1f}%<extra>" + name + "</extra>"}
        )  # fmt: skip
    shape = layout(320, axis("response tokens edited", type="category"), axis("%", rangemode="tozero"))
    rows = tuple(
        (window_name(w), estimate(w.effect), share(w.share), percent(w.harmful_compliance.value), estimate(w.benign_kl))
        for w in measured.windows
    )
    columns = ("edit at", "CE, nats", "share", "harmful compliance", "benign KL, nats")
    return Plot("edit-by-window", sufficiency(measured), traces, shape, columns, rows)


ANALYSIS = Analysis(
    order=50,
    name="token_effects",
    title="Token level",
    kind=TokenEffects,
    claims=(),
    measure=measure,
    describe=describe,
    total=total,
)
