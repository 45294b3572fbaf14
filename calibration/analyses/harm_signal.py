"""Early harm signal and its path: where the model first tells harm, and whether that is what opens the gate late.

Probes are fitted on calibration requests, layers are chosen on validation ones, and everything is read on held-out
ones. Two directions of each early stream are tried. The probe's knows nothing of the gate: it tells harm best, but a
direction that tells need not be one that is used. The other is what the gate reads, the gradient of its opening at its
door, and knows nothing of labels: where that tells harm too, and exchanging it opens and closes the gate beyond random
directions of the same norm, a signal causes the gate's activity. Its layer is the first at which half of the difference
that it makes at the door is there; what comes before may well cause it, in other directions.

The signal is exchanged between the two runs of a pair at the tokens that line up, x <- x + (s' - s) d, with s = x . d
of the run itself and s' of the other one. The control moves as far along random directions. What is left of the effect
with all later attention outputs frozen at their values in the unmoved run goes through MLPs or straight through the
residual stream, and so on (path patching: Wang et al. 2022; Goldowsky-Dill et al. 2023). Of a frozen MLP the gate's own
neurons are left free, for they are what is watched. Pairs are harmful requests beside benign ones also where the gate's
contrast is of jailbreaks, whose two requests are both harmful: benign prompts then stand in for the references, wrapped
as they are.

The signal is also tried as an edit of its own beside the clamp of the gate. Where the component s along a direction is
above what benign requests reach, s <- threshold + factor (s - threshold): a factor of 0 or less takes the signal away
before it can open the gate, one above 1 makes it so loud that refusal survives what hushed it. Which of them guards is
not assumed: all are tried on validation requests under the gate's own objective and budget, and only one that lowers
harm there is ever generated with. It is measured, and written into no spec.

The gate's opening is 0 as on benign requests and 1 as on harmful ones, on average over calibration pairs. Outcomes are
Y, in nats. All numbers are of held-out requests.

Cost: for each layer before the gate about 20 runs of the pairs (at most 32) from there to the end, 20 with gradients
before the gate alone; probes cubic in d_model; the held-out answers generated once more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from calibration.analyses.analysis import Analysis, Numbers, Section
from calibration.analyses.gate_activity import GateActivity, Opening, gate_activity, opening
from calibration.analyses.subject import Subject
from calibration.effects.auroc import auroc_estimate
from calibration.effects.outcome import outcome, readout_logits
from calibration.effects.statistics import bootstrap_estimate, bootstrap_estimates, wilson_estimate
from calibration.evidence.verdict import Installed, Output, benign_divergence, outputs, surprise_limit
from calibration.judging.behaviour import Behaviour
from calibration.prompts.sequences import Batch
from calibration.report.display import TOKEN_GROUP_NAMES, estimate, number, percent, setting, share
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, points, whiskers
from calibration.runs.interventions import Mediator, patching, recording, token_columns
from calibration.runs.layer_calls import calls
from calibration.runs.resume import LateRun, record
from calibration.runs.token_window import Window, windowed_stream
from calibration.search.bounds import Measured, measured_on, unedited_logits
from calibration.search.findings import Advance, held_out_examination
from calibration.search.gate import SplitBatches
from calibration.search.selection import Requests
from calibration.search.trigger import TokenStates, conformal_threshold, fit_direction
from guard.errors import NeuronGuardError
from guard.families.architectures import architecture_of
from guard.hf import install_edits
from guard.spec.claim import Claim, Ground, claim
from guard.spec.edit_spec import OffOn
from guard.spec.measures import Count, Estimate, Finite, Frozen

READS_OUT = 0.95
Direction = Literal["probe", "read"]
TokenGroup = Literal["request", "tail", "last_prompt", "response"]
FrozenModules = Literal["nothing", "attention", "mlp", "both"]


class Readout(Frozen):
    """How well a probe of the residual stream that leaves `layer` tells harmful from benign, at a group of tokens."""

    layer: Count
    tokens: TokenGroup
    auroc: Estimate


class AgainstRandom(Frozen):
    """An effect, the mean size of random directions' of the same norms, and how far the first is above the second."""

    effect: Estimate
    random: Estimate
    beyond: Estimate


class Exchange(Frozen):
    """The component along a direction exchanged between benign and harmful runs where the stream leaves `layer`.

    `direction`: the layer's own probe, or what the gate reads. `auroc`: how well the component tells harm at the last
    prompt token. Into the reference run an effect is what that gains, into the harmful one what it loses.
    """

    layer: Count
    direction: Direction
    auroc: Estimate
    gate_into_reference: AgainstRandom
    gate_into_harmful: AgainstRandom
    outcome_into_reference: AgainstRandom
    outcome_into_harmful: AgainstRandom


class Path(Frozen):
    """What is left of the signal's exchange with all later outputs of one kind before the gate frozen."""

    frozen: FrozenModules
    gate_into_reference: Estimate
    gate_into_harmful: Estimate
    outcome_into_reference: Estimate
    outcome_into_harmful: Estimate


class EditOutcome(Frozen):
    """What an edit does on held-out requests: mean Y and greedy compliance on harmful ones, refusal, KL on benign."""

    harmful_outcome: Estimate
    harmful_compliance: Estimate
    harmful_garbled: Estimate
    benign_refusal: Estimate
    benign_kl: Estimate


class Disruption(Frozen):
    """The early edit: where the component s along a direction is above the threshold, s <- threshold + factor (s -
    threshold), at the template tail and the response.
    """

    layer: Count
    direction: Direction
    threshold: Finite
    factor: Finite
    outcome: EditOutcome


class HarmSignal(Numbers):
    """Probes, exchanges, paths, and the early edit beside the gate's.

    `reads_out` is the earliest layer whose probe at the last prompt token tells harm at `READS_OUT` on validation
    requests. `layer` is where the signal that the gate reads is first there (`there`: at all), `direction` (unit,
    [d_model]) what the gate reads of the stream; both found without held-out requests. `disruption` is None where no
    variant lowers harm.
    """

    readouts: tuple[Readout, ...] = Field(min_length=1)
    reads_out: Count | None
    layer: Count
    there: bool
    direction: tuple[Finite, ...]
    exchanges: tuple[Exchange, ...] = Field(min_length=1)
    paths: tuple[Path, ...]
    without: EditOutcome
    clamp: EditOutcome
    disruption: Disruption | None

    def exchanged(self, direction: Direction) -> tuple[Exchange, ...]:
        """The exchanges along a direction, by layer."""
        return tuple(exchange for exchange in self.exchanges if exchange.direction == direction)

    @property
    def signal(self) -> Exchange:
        """The exchange of what the gate reads, at the signal's layer."""
        return next(exchange for exchange in self.exchanged("read") if exchange.layer == self.layer)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """That a signal before the gate tells harm, and opens and closes the gate beyond random directions."""
        signal = self.signal
        grounds = (
            Ground(name=f"AUROC after layer {self.layer}, less {READS_OUT}", estimate=_less(signal.auroc, READS_OUT)),
            Ground(name="opens the gate beyond random directions", estimate=signal.gate_into_reference.beyond),
            Ground(name="closes the gate beyond random directions", estimate=signal.gate_into_harmful.beyond),
        )
        return (claim("early_signal", "an early signal of harm causes the gate's activity", grounds),)


def _less(estimate: Estimate, by: float) -> Estimate:
    return Estimate(value=estimate.value - by, low=estimate.low - by, high=estimate.high - by, n=estimate.n)


Pairs = list[tuple[Batch, Batch]]
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


FROZEN: tuple[FrozenModules, ...] = ("nothing", "attention", "mlp", "both")
PATH_STEPS = 5


@dataclass(frozen=True)
class Effects:
    """Effects of an exchange on each pair, [pairs] each: what the reference run gains, what the harmful one loses."""

    gate_into_reference: Tensor
    gate_into_harmful: Tensor
    outcome_into_reference: Tensor
    outcome_into_harmful: Tensor

    def stacked(self) -> Tensor:
        """The four, in their order, [pairs, 4] float64."""
        parts = (
            self.gate_into_reference, self.gate_into_harmful, self.outcome_into_reference, self.outcome_into_harmful,
        )  # fmt: skip
        return torch.stack(parts, 1).double().cpu()


@dataclass(frozen=True)
class SignalRuns:
    """A batch of pairs as its two runs enter one layer, and how the gate is read in them."""

    activity: GateActivity
    scale: Opening
    reference: LateRun
    harmful: LateRun

    def advanced(self) -> "SignalRuns":
        """The same pairs one layer further on."""
        with torch.no_grad():
            return replace(self, reference=self.reference.advanced(), harmful=self.harmful.advanced())

    @cached_property
    def _unmoved(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Y and the gate's opening in both runs as they are."""
        reference, harmful = (self._of(self.activity.read(run)) for run in (self.reference, self.harmful))
        return reference, harmful

    def _of(self, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return read[0], self.scale.of(read[1])

    def _apart(self, direction: Tensor) -> Tensor:
        """How far apart the components are, s* - s at the tokens that line up, [2B, T_edited]."""
        edited = self.harmful.batch.edited
        difference = self.harmful.residual[:, edited] - self.reference.residual[:, edited]
        return difference @ direction.to(difference)

    def _read(self, run: LateRun, moved: Tensor, frozen: FrozenModules) -> tuple[Tensor, Tensor]:
        """Y and the gate's opening, [B] each, of `run` with its stream at the tokens that line up moved."""
        stream = run.residual.clone()
        stream[:, run.batch.edited] += moved
        held = nullcontext() if frozen == "nothing" else patching(run.model, run.batch, self._values(run, frozen))
        with held:
            return self._of(self.activity.read(replace(run, residual=stream)))

    def _values(self, run: LateRun, frozen: FrozenModules) -> dict[Mediator, Tensor]:
        with recording(run.model, run.batch, self._mediators(run, frozen)) as values:
            run.readout_logits()
        return dict(values)

    def _mediators(self, run: LateRun, frozen: FrozenModules) -> list[Mediator]:
        """What lies between the run's first layer and the gate's last: attention, MLP neurons outside the gate."""
        last = max(self.activity.neurons)
        found = []
        if frozen in ("attention", "both"):
            found += [Mediator("attention", layer) for layer in range(run.first_layer, last + 1)]
        if frozen in ("mlp", "both"):
            architecture = architecture_of(run.model)
            layers = architecture.decoder_layers(run.model)
            for layer in range(run.first_layer, last):
                other = torch.ones(architecture.neurons_of(layers[layer]), dtype=torch.bool)
                if layer in self.activity.neurons:
                    other[self.activity.neurons[layer]] = False
                found.append(Mediator("neurons", layer, neurons=tuple(other.nonzero()[:, 0].tolist())))
        return found

    @torch.inference_mode()
    def exchange(self, direction: Tensor, along: Tensor | None = None, frozen: FrozenModules = "nothing") -> Effects:
        """The effects of exchanging the component along `direction` (unit, [d_model]).

        With `along` (unit, [d_model]) the runs are moved as far along that one instead.
        """
        into = (direction if along is None else along).to(self.harmful.residual)
        moved = self._apart(direction)[..., None] * into  # [2B, T_edited, d_model]
        (y, gate), (y_star, gate_star) = self._unmoved
        y_gain, gate_gain = self._read(self.reference, moved, frozen)
        y_loss, gate_loss = self._read(self.harmful, -moved, frozen)
        return Effects(gate_gain - gate, gate_star - gate_loss, y_gain - y, y_star - y_loss)

    def gradient(self) -> Tensor:
        """The gradient of the gate's opening by the stream at the last prompt token, summed over requests, [d_model].

        Averaged over both runs and over the way from the one's stream to the other's (integrated gradients,
        Sundararajan et al. 2017): at either end the gate may be shut, or wide open, and tell nothing of what opens it.
        """
        edited, decisive = self.harmful.batch.edited, self.harmful.batch.prompt_width - 1
        total = torch.zeros(self.harmful.residual.shape[-1])
        for run in (self.reference, self.harmful):
            for step in range(PATH_STEPS):
                stream = run.residual.clone()
                ends = (self.reference.residual[:, edited], self.harmful.residual[:, edited])
                stream[:, edited] = torch.lerp(*ends, (step + 0.5) / PATH_STEPS)
                stream.requires_grad_()
                with torch.enable_grad():
                    _, written = self.activity.read(replace(run, residual=stream))
                    open_by = self.scale.of(written).sum()
                (gradient,) = torch.autograd.grad(open_by, stream)
                total += gradient[:, decisive].float().sum(0).cpu() / (2 * PATH_STEPS)
        return total


def what_the_gate_reads(runs: Sequence[SignalRuns]) -> Tensor:
    """The unit direction [d_model] along which the stream at the last prompt token opens the gate most."""
    gradient = torch.stack([run.gradient() for run in runs]).sum(0)
    found: Tensor = gradient / gradient.norm().clamp(min=1e-12)
    return found


def exchanged(
    runs: Sequence[SignalRuns], direction: Tensor, along: Tensor | None = None, frozen: FrozenModules = "nothing"
) -> Tensor:
    """`SignalRuns.exchange` over batches of pairs: [pairs, 4] float64, in the order of `Effects`."""
    return torch.cat([run.exchange(direction, along, frozen).stacked() for run in runs])


def random_directions(d_model: int, count: int, seed: int) -> list[Tensor]:
    """`count` random unit directions [d_model]."""
    drawn = torch.randn(count, d_model, generator=torch.Generator().manual_seed(seed))
    return list(drawn / drawn.norm(dim=1, keepdim=True))


FACTORS = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0)
ALPHA = 0.01


@dataclass(frozen=True)
class Stretch:
    """One variant: at the stream that leaves `layer`, along the unit `direction` [d_model] named `name`."""

    layer: int
    name: Direction
    direction: Tensor
    threshold: float
    factor: float

    def __call__(self, stream: Tensor) -> Tensor:
        """The stream [..., d_model] with its component above the threshold stretched; others stay bit for bit."""
        direction = self.direction.to(stream)
        above = (stream @ direction - self.threshold).clamp(min=0)[..., None]
        return torch.where(above > 0, stream + (self.factor - 1) * above * direction, stream)


def _runs(subject: Subject, batches: Sequence[Batch], layer: int) -> Requests:
    runs = [record(subject.model, batch, layer + 1) for batch in batches]
    return Requests(runs, (None,) * len(runs))


def _highest(run: LateRun, direction: Tensor) -> Tensor:
    """Each request's highest component along `direction` over its own answer and the template tail, [B]."""
    batch = run.batch
    scores = run.residual[: batch.size, batch.edited].float() @ direction.to(run.residual.device)
    return scores.masked_fill(~batch.reading[: batch.size].to(scores.device), -torch.inf).amax(1).cpu()


@torch.inference_mode()
def best_stretch(subject: Subject, layer: int, directions: Mapping[Direction, Tensor]) -> Stretch | None:
    """The variant with the lowest objective on validation requests among those that lower harm; None if none does."""
    material, budget = subject.material, subject.settings.budget
    fitted = _runs(subject, material.calibration.benign, layer).runs
    harmful, benign = (
        _runs(subject, batches, layer) for batches in (material.validation.harmful, material.validation.benign)
    )
    reference = unedited_logits(benign)
    unguarded = measured_on(_logits(harmful, None), _logits(benign, None), reference)
    tried: list[tuple[Measured, Stretch]] = []
    for name, direction in directions.items():
        threshold, _ = conformal_threshold(torch.cat([_highest(run, direction) for run in fitted]), ALPHA)
        for factor in FACTORS:
            stretch = Stretch(layer, name, direction, threshold, factor)
            tried.append((measured_on(_logits(harmful, stretch), _logits(benign, stretch), reference), stretch))
    guarding = [
        pair for pair in tried if pair[0].harm < unguarded.harm and pair[0].harmful_outcome < unguarded.harmful_outcome
    ]
    return min(guarding, key=lambda pair: pair[0].objective(budget))[1] if guarding else None


def _logits(requests: Requests, stretch: Stretch | None) -> Iterator[tuple[Tensor, Batch]]:
    """Read-out logits of each run, its stream stretched from the template tail on."""
    for run in requests.runs:
        stream = run.residual
        if stretch is not None:
            stream = stream.clone()
            columns = slice(run.batch.edited.start, None)
            stream[:, columns] = stretch(stream[:, columns])
        yield replace(run, residual=stream).readout_logits(), run.batch


class SideBySide:
    """Held-out requests, on which the early edit is measured as the verdict measures the gate's."""

    def __init__(self, subject: Subject) -> None:
        settings, material = subject.settings, subject.material
        self.subject, self.held_out = subject, subject.findings.examined.held_out
        self.exam = held_out_examination(subject.model, subject.tokenizer, material, settings)

    def without(self) -> EditOutcome:
        """The model as it is; its rates are the verdict's."""
        outcomes = self._outcomes(nullcontext)
        nothing = bootstrap_estimate(torch.zeros(len(self.exam.benign)), seed=self.subject.settings.seed)
        return self._of_verdict(outcomes, lambda rate: rate.off, nothing)

    def clamp(self) -> EditOutcome:
        """The gate's edit; its rates are the verdict's."""
        edits, trigger = self.subject.edits, self.subject.gate.trigger
        outcomes = self._outcomes(partial(install_edits, self.subject.model, edits, trigger))
        return self._of_verdict(outcomes, lambda rate: rate.on, self.held_out.benign_kl)

    def _of_verdict(self, outcomes: Estimate, side: Callable[[OffOn], Estimate], divergence: Estimate) -> EditOutcome:
        return EditOutcome(
            harmful_outcome=outcomes,
            harmful_compliance=side(self.held_out.harmful_compliance),
            harmful_garbled=side(self.held_out.harmful_garbled),
            benign_refusal=side(self.held_out.benign_refusal),
            benign_kl=divergence,
        )

    def disruption(self, stretch: Stretch) -> Disruption:
        """The early edit, at the template tail and the response."""
        batch, exam = self.subject.material.held_out.harmful[0], self.exam
        window = Window(first=1 - batch.tail)

        def stretched(prompt_width: int) -> AbstractContextManager[None]:
            model = self.subject.model
            return windowed_stream(model, stretch.layer, stretch, window, prompt_width=prompt_width)

        forced = partial(stretched, batch.prompt_width)
        own = outputs(exam, exam.benign, nullcontext, float("inf"))
        harmful, benign = (
            outputs(exam, prompts, nullcontext, surprise_limit(own), within=stretched)
            for prompts in (exam.harmful, exam.benign)
        )
        measured = EditOutcome(
            harmful_outcome=self._outcomes(forced),
            harmful_compliance=_rate(harmful, Behaviour.COMPLIED),
            harmful_garbled=_rate(harmful, Behaviour.GARBLED),
            benign_refusal=_rate(benign, Behaviour.REFUSED),
            benign_kl=bootstrap_estimate(
                benign_divergence(exam, forced)[0].double().cpu(), seed=self.subject.settings.seed
            ),
        )
        return Disruption(
            layer=stretch.layer,
            direction=stretch.name,
            threshold=stretch.threshold,
            factor=stretch.factor,
            outcome=measured,
        )

    @torch.inference_mode()
    def _outcomes(self, installed: Installed) -> Estimate:
        """Mean Y of the harmful requests with an edit installed."""
        with installed():
            found = [
                outcome(readout_logits(self.subject.model, batch), batch)
                for batch in self.subject.material.held_out.harmful
            ]
        return bootstrap_estimate(torch.cat(found).double().cpu(), seed=self.subject.settings.seed)


def _rate(judged: Sequence[Output], kind: Behaviour) -> Estimate:
    return wilson_estimate(sum(output.behaviour is kind for output in judged), len(judged))


REQUESTS = 128  # of each kind that are probed
PAIRS = 32  # that are run again
RANDOM = 4
CARRIED = 0.5

States = dict[tuple[int, TokenGroup], Tensor]


class Contrast:
    """One split's pairs, and the streams of their benign and harmful requests by early layer and token group."""

    def __init__(self, subject: Subject, split: str, early: Sequence[int]) -> None:
        pairs = signal_pairs(getattr(subject.material, split), subject.sources.contrast, REQUESTS)
        self.benign, self.harmful = (
            group_states(subject.model, [pair[side] for pair in pairs], early) for side in (0, 1)
        )
        self.pairs: Pairs = pairs[: max(1, PAIRS // pairs[0][1].size)]

    def scores(self, layer: int, group: TokenGroup, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The components of harmful and benign requests along a direction, [requests] each."""
        return self.harmful[layer, group] @ direction, self.benign[layer, group] @ direction


def fit_probes(contrast: Contrast, early: Sequence[int]) -> States:
    """The unit direction [d_model] of a logistic probe for each early layer and token group."""
    found = {}
    for layer in early:
        for group in TOKEN_GROUPS:
            direction = fit_direction(
                _one_token(contrast.harmful[layer, group]), _one_token(contrast.benign[layer, group]), 0
            )
            found[layer, group] = direction / direction.norm().clamp(min=1e-12)
    return found


def _one_token(states: Tensor) -> TokenStates:
    rows = len(states)
    return TokenStates(states[:, None], torch.ones(rows, 1, dtype=torch.bool), torch.zeros(rows, dtype=torch.long))


def _tells(contrast: Contrast, layer: int, direction: Tensor) -> bool:
    """Whether the point of the AUROC is at `READS_OUT`: by the interval, fewer requests would put the layer later."""
    return auroc_estimate(*contrast.scores(layer, "last_prompt", direction)).value >= READS_OUT


def first_there(contrast: Contrast, direction: Tensor, early: Sequence[int]) -> tuple[int, bool]:
    """The earliest layer after which a component tells harm as far apart as `CARRIED` of the way at the last early
    layer, and True; the last early layer and False where it tells harm in none.
    """

    def apart(layer: int) -> float:
        harmful, benign = contrast.scores(layer, "last_prompt", direction)
        return float(harmful.mean() - benign.mean())

    for layer in early:
        if _tells(contrast, layer, direction) and apart(layer) >= CARRIED * apart(early[-1]):
            return layer, True
    return early[-1], False


def signal_runs(subject: Subject, pairs: Pairs, activity: GateActivity, scale: Opening, layer: int) -> list[SignalRuns]:
    """The pairs' runs as they leave `layer`."""
    return [SignalRuns(activity, scale, *(record(subject.model, batch, layer + 1) for batch in pair)) for pair in pairs]


@torch.no_grad()  # not inference_mode: gradients are taken on this scale later
def gate_scale(subject: Subject, pairs: Pairs, activity: GateActivity) -> Opening:
    """The scale of the gate's opening, from benign and harmful calibration requests."""
    first = min(activity.neurons)
    written = [[activity.read(record(subject.model, batch, first))[1] for batch in pair] for pair in pairs]
    benign, harmful = (torch.cat(side).cpu() for side in zip(*written, strict=True))
    return opening(benign, harmful)


def _against(effects: Tensor, random: Tensor, seed: int) -> list[AgainstRandom]:
    """Effects [pairs, k] and those of random directions [directions, pairs, k], as k comparisons."""
    size = random.abs().mean(0)
    columns = [bootstrap_estimates(part, seed=seed) for part in (effects, size, effects - size)]
    return [AgainstRandom(effect=e, random=r, beyond=b) for e, r, b in zip(*columns, strict=True)]


def measure_exchanges(
    runs: list[SignalRuns], contrast: Contrast, layer: int, directions: dict[Direction, Tensor], seed: int
) -> list[Exchange]:
    """The exchange along each direction where the stream leaves `layer`."""
    measured = []
    drawn = random_directions(len(next(iter(directions.values()))), RANDOM, seed)
    for name, direction in directions.items():
        random = torch.stack([exchanged(runs, direction, along) for along in drawn])
        compared = _against(exchanged(runs, direction), random, seed)
        measured.append(
            Exchange(
                layer=layer,
                direction=name,
                auroc=auroc_estimate(*contrast.scores(layer, "last_prompt", direction)),
                gate_into_reference=compared[0],
                gate_into_harmful=compared[1],
                outcome_into_reference=compared[2],
                outcome_into_harmful=compared[3],
            )
        )
    return measured


def measure_paths(runs: list[SignalRuns], direction: Tensor, seed: int) -> tuple[Path, ...]:
    """What is left of the exchange with later attention, MLPs, or both frozen."""
    found = []
    for frozen in FROZEN:
        left = bootstrap_estimates(exchanged(runs, direction, frozen=frozen), seed=seed)
        found.append(
            Path(
                frozen=frozen,
                gate_into_reference=left[0],
                gate_into_harmful=left[1],
                outcome_into_reference=left[2],
                outcome_into_harmful=left[3],
            )
        )
    return tuple(found)


def early_layers(subject: Subject) -> range:
    """The layers before the first guarded one. NeuronGuardError where there is none."""
    early = range(min(edit.layer for edit in subject.edits))
    if not early:
        raise NeuronGuardError(
            "the gate is in the first layer, and nothing is before it: leave out the analysis harm_signal."
        )
    return early


def measure(subject: Subject, advance: Advance) -> HarmSignal:
    """Probes, the signal that the gate reads, its exchange by layer, its paths, and the early edit as a guard."""
    early, seed = early_layers(subject), subject.settings.seed
    calibration, validation, held_out = (
        Contrast(subject, split, early) for split in ("calibration", "validation", "held_out")
    )
    probes = fit_probes(calibration, early)
    readouts = tuple(
        Readout(layer=layer, tokens=group, auroc=auroc_estimate(*held_out.scores(layer, group, probe)))
        for (layer, group), probe in probes.items()
    )
    activity = gate_activity(subject.model, subject.edits)
    scale = gate_scale(subject, calibration.pairs, activity)
    read = what_the_gate_reads(signal_runs(subject, calibration.pairs, activity, scale, early[-1]))
    signal, there = first_there(validation, read, early)
    exchanges: list[Exchange] = []
    paths: tuple[Path, ...] = ()
    runs = signal_runs(subject, held_out.pairs, activity, scale, early[0])
    for layer in early:
        if layer > early[0]:
            runs = [run.advanced() for run in runs]
        directions: dict[Direction, Tensor] = {"probe": probes[layer, "last_prompt"], "read": read}
        exchanges += measure_exchanges(runs, held_out, layer, directions, seed)
        if layer == signal:
            paths = measure_paths(runs, read, seed)
        advance(1)
    side = SideBySide(subject)
    stretch = best_stretch(subject, signal, {"probe": probes[signal, "last_prompt"], "read": read})
    found = HarmSignal(
        readouts=readouts,
        reads_out=next((layer for layer in early if _tells(validation, layer, probes[layer, "last_prompt"])), None),
        layer=signal,
        there=there,
        direction=tuple(round(value, 6) for value in read.tolist()),
        exchanges=tuple(exchanges),
        paths=paths,
        without=side.without(),
        clamp=side.clamp(),
        disruption=None if stretch is None else side.disruption(stretch),
    )
    advance(1)
    return found


def total(subject: Subject) -> int:
    """The steps that `measure` tells of: a layer each, and the edits."""
    return len(early_layers(subject)) + 1


GROUP_NAMES = TOKEN_GROUP_NAMES | {"request": "request"}
FROZEN_NAMES = {
    "nothing": "nothing frozen",
    "attention": "attention frozen",
    "mlp": "MLPs frozen",
    "both": "both frozen",
}
DIRECTION_NAMES = {"probe": "the layer's probe", "read": "what the gate reads"}
EXCHANGE_COLUMNS = (
    "layer", "direction", "AUROC", "opens the gate", "random", "closes the gate", "random", "Y gained, nats", "random",
    "Y lost, nats", "random",
)  # fmt: skip
EDIT_COLUMNS = ("edit", "harmful compliance", "garbled", "Y on harmful, nats", "benign refusal", "benign KL, nats")


def describe(measured: HarmSignal) -> Section:
    """The section, its figures with their numbers."""
    plots = (readouts_plot(measured), exchanges_plot(measured), paths_plot(measured), edits_plot(measured))
    return Section("Early harm signal and its path", paragraphs(measured), plots)


def paragraphs(measured: HarmSignal) -> tuple[str, ...]:
    """What was found, in sentences."""
    signal = measured.signal
    if measured.reads_out is None:
        told = f"No probe before the gate tells harm at an AUROC of {READS_OUT} at the last prompt token."
    else:
        auroc = next(r.auroc for r in measured.readouts if (r.layer, r.tokens) == (measured.reads_out, "last_prompt"))
        told = (
            f"Harm can first be read from the residual stream after layer {measured.reads_out}: a probe of the last "
            f"prompt token has an AUROC of {estimate(auroc)} on held-out requests."
        )
    if measured.there:
        where = f"What the gate reads of the stream tells harm from layer {measured.layer} on"
    else:
        where = "What the gate reads of the stream tells harm in no layer before it"
    caused = (
        f"{where}: AUROC {estimate(signal.auroc)} after layer {measured.layer}. Taking that component from harmful "
        f"runs opens the gate in benign ones by {percent_of(signal.gate_into_reference)}, and taking it "
        f"from benign runs closes it in harmful ones by {percent_of(signal.gate_into_harmful)}."
    )
    return told, caused, path_sentence(measured), edit_sentence(measured.clamp, measured.disruption)


def percent_of(against: AgainstRandom) -> str:
    """An effect on the gate's opening, as a share of harm's own, with that of random directions."""
    return f"{share(against.effect)} of what harm does (random directions of the same norm: {share(against.random)})"


def path_sentence(measured: HarmSignal) -> str:
    """How much of the signal's effect on the gate is left when attention, MLPs or both are frozen."""
    left = {path.frozen: path.gate_into_reference.value for path in measured.paths}
    whole = left["nothing"]
    if abs(whole) < 1e-6:
        return "The exchange does not open the gate, so there is no path to follow."
    shares = {frozen: f"{100 * value / whole:.0f}%".replace("-", "−") for frozen, value in left.items()}
    return (
        f"On the way to the gate {shares['attention']} of its opening is left with all later attention outputs frozen, "
        f"{shares['mlp']} with all later MLP neurons outside the gate frozen, and {shares['both']} with both, which is "
        "what goes straight through the residual stream and the gate's own neurons."
    )


def edit_sentence(clamp: EditOutcome, disruption: Disruption | None) -> str:
    """The early edit beside the late one."""
    if disruption is None:
        return "No way of disrupting the signal that was tried lowers harm on validation requests: none was measured."
    early = disruption.outcome
    return (
        f"As an edit of its own, what the component along {DIRECTION_NAMES[disruption.direction]} exceeds benign "
        f"requests by after layer {disruption.layer} is multiplied by {setting(disruption.factor)}: harmful compliance "
        f"is {percent(early.harmful_compliance.value)} at a benign KL of {number(early.benign_kl.value)} nats. The "
        f"gate's clamp leaves {percent(clamp.harmful_compliance.value)} at {number(clamp.benign_kl.value)} nats."
    )


def _layers_axis(layers: Sequence[int]) -> Json:
    ticks = list(layers)[:: max(1, -(-len(layers) // 12))]
    return axis("after layer", tickvals=ticks, ticktext=[str(tick) for tick in ticks], zeroline=False, showgrid=False)


def _line(
    name: str, layers: Sequence[int], values: Sequence[Estimate], colour: str, symbol: str, **more: object
) -> Json:
    return points(
        name, layers, [value.value for value in values], colour, symbol, mode="lines+markers",
        error_y=whiskers(values, colour), text=[estimate(value) for value in values],
        hovertemplate="layer %{x}: %{text}<extra>" + name + "</extra>", **more,
    )  # fmt: skip


def readouts_plot(measured: HarmSignal) -> Plot:
    """AUROC by layer, of the probes at each token group and of what the gate reads."""
    traces = []
    styles = (("request", "$three", "circle"), ("tail", "$quiet", "square"), ("last_prompt", "$one", "diamond"),
              ("response", "$muted", "x"))  # fmt: skip
    layers = sorted({readout.layer for readout in measured.readouts})
    for group, colour, symbol in styles:
        own = [readout.auroc for readout in measured.readouts if readout.tokens == group]
        traces.append(_line(GROUP_NAMES[group], layers, own, colour, symbol))
    read = [exchange.auroc for exchange in measured.exchanged("read")]
    traces.append(_line("what the gate reads", layers, read, "$two", "star"))
    traces.append(dashed([layers[0] - 0.3, layers[-1] + 0.3], [READS_OUT] * 2, f"{READS_OUT}"))
    label = (
        f"AUROC of probes of harm by layer and token group on held-out requests; at the last prompt token {READS_OUT} "
        + ("is not reached." if measured.reads_out is None else f"is reached after layer {measured.reads_out}.")
    )
    rows = [(str(r.layer), f"probe, {GROUP_NAMES[r.tokens]}", estimate(r.auroc)) for r in measured.readouts]
    rows += [
        (str(e.layer), "what the gate reads, last prompt token", estimate(e.auroc)) for e in measured.exchanged("read")
    ]
    lowest = min(value for trace in traces for value in trace["y"])
    shape = layout(360, _layers_axis(layers), axis("AUROC", range=[min(0.45, lowest - 0.05), 1.02]))
    return Plot("harm-signal-readouts", label, traces, shape, ("layer", "read from", "AUROC"), tuple(rows))


def exchanges_plot(measured: HarmSignal) -> Plot:
    """How far exchanging each direction opens and closes the gate, by layer, against random directions."""
    traces = []
    layers = sorted({exchange.layer for exchange in measured.exchanges})
    for panel, opens in (("y", True), ("y2", False)):
        for direction, colour, symbol in (("probe", "$one", "circle"), ("read", "$two", "square")):
            own = [_on_gate(exchange, opens) for exchange in measured.exchanges if exchange.direction == direction]
            name = DIRECTION_NAMES[direction]
            shared = {"yaxis": panel, "legendgroup": name, "showlegend": opens}
            traces.append(_line(name, layers, [against.effect for against in own], colour, symbol, **shared))
            random = _line(f"random, as far as {name}", layers, [a.random for a in own], colour, f"{symbol}-open")
            traces.append(random | {"yaxis": panel, "legendgroup": f"random {name}", "showlegend": opens}
                          | {"line": {"color": colour, "width": 1, "dash": "dot"}})  # fmt: skip
    signal = measured.signal
    label = (
        "How far exchanging a direction's component opens the gate in benign runs and closes it in harmful ones; 1 is "
        f"what harm does. What the gate reads after layer {signal.layer}: "
        f"{estimate(signal.gate_into_reference.effect)} and {estimate(signal.gate_into_harmful.effect)}."
    )
    shape = layout(
        480, _layers_axis(layers) | {"anchor": "y2"}, axis("opens", domain=[0.54, 1]),
        yaxis2=axis("closes", domain=[0, 0.46]),
    )  # fmt: skip
    rows = tuple(
        (str(e.layer), DIRECTION_NAMES[e.direction], estimate(e.auroc), *_compared(e.gate_into_reference),
         *_compared(e.gate_into_harmful), *_compared(e.outcome_into_reference), *_compared(e.outcome_into_harmful))
        for e in measured.exchanges
    )  # fmt: skip
    return Plot("harm-signal-exchanges", label, traces, shape, EXCHANGE_COLUMNS, rows)


def _on_gate(exchange: Exchange, opens: bool) -> AgainstRandom:
    return exchange.gate_into_reference if opens else exchange.gate_into_harmful


def _compared(against: AgainstRandom) -> tuple[str, str]:
    return estimate(against.effect), estimate(against.random)


def paths_plot(measured: HarmSignal) -> Plot:
    """What is left of the signal's exchange with later outputs frozen."""
    names = [FROZEN_NAMES[path.frozen].replace(" ", "<br>") for path in measured.paths]
    traces: list[Json] = []
    for name, colour, values in (
        ("opens the gate", "$one", [path.gate_into_reference for path in measured.paths]),
        ("closes the gate", "$two", [path.gate_into_harmful for path in measured.paths]),
    ):
        traces.append(
            {"type": "bar", "name": name, "x": names, "y": [value.value for value in values],
             "error_y": whiskers(values, "$text"), "marker": {"color": colour}, "textposition": "none",
             "text": [estimate(value) for value in values], "hovertemplate": "%{text}<extra>" + name + "</extra>"}
        )  # fmt: skip
    shape = layout(320, axis("", type="category"), axis("share of harm's own effect"), barmode="group")
    rows = tuple(
        (FROZEN_NAMES[p.frozen], estimate(p.gate_into_reference), estimate(p.gate_into_harmful),
         estimate(p.outcome_into_reference), estimate(p.outcome_into_harmful))
        for p in measured.paths
    )  # fmt: skip
    columns = ("frozen", "opens the gate", "closes the gate", "Y gained, nats", "Y lost, nats")
    return Plot("harm-signal-paths", path_sentence(measured), traces, shape, columns, rows)


def edits_plot(measured: HarmSignal) -> Plot:
    """Harmful compliance and benign refusal of no edit, the gate's clamp, and the early edit."""
    rows = [("none", measured.without), ("late clamp", measured.clamp)]
    if measured.disruption is not None:
        rows.append(("early disruption", measured.disruption.outcome))
    traces: list[Json] = []
    for name, colour, values in (
        ("harmful compliance", "$off", [of_edit.harmful_compliance for _, of_edit in rows]),
        ("benign refusal", "$three", [of_edit.benign_refusal for _, of_edit in rows]),
    ):
        traces.append(
            {"type": "bar", "name": name, "x": [edit for edit, _ in rows], "y": [100 * v.value for v in values],
             "error_y": whiskers(values, "$text", 100.0), "marker": {"color": colour}, "textposition": "none",
             "text": [percent(value.value) for value in values],
             "hovertemplate": "%{x}: %{text}<extra>" + name + "</extra>"}
        )  # fmt: skip
    table = tuple(
        (edit, percent(o.harmful_compliance.value), percent(o.harmful_garbled.value), estimate(o.harmful_outcome),
         percent(o.benign_refusal.value), estimate(o.benign_kl))
        for edit, o in rows
    )  # fmt: skip
    shape = layout(320, axis("", type="category"), axis("%", range=[0, 104]), barmode="group")
    return Plot(
        "harm-signal-edits", edit_sentence(measured.clamp, measured.disruption), traces, shape, EDIT_COLUMNS, table
    )


ANALYSIS = Analysis(
    order=40,
    name="harm_signal",
    title="Early harm signal and its path",
    kind=HarmSignal,
    claims=("early_signal",),
    measure=measure,
    describe=describe,
    total=total,
    needs_gate=True,
)
