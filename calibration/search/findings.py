"""The search and the verdict on material that is ready: what `pipeline.py` writes down and what the benchmarks repeat.

Every stage goes through `keep(name, kind, compute)`, which may have its result already, and reports to `progress`.
Neither is needed: a benchmark runs in memory and in silence.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import PreTrainedTokenizerBase

from calibration.evidence.effects_evidence import Mediation, mediation_evidence, neuron_evidence, set_sizes
from calibration.evidence.specificity import keep_outcomes
from calibration.evidence.verdict import RANDOM_GATES, Examination, Examined, examine, matched_gates
from calibration.judging.behaviour import refusal_openings
from calibration.prompts.material import Material
from calibration.runs.processes import Shared
from calibration.runs.shelf import Shelf
from calibration.runs.store import Keep, compute_anew
from calibration.search.bounds import Budget, build_edits
from calibration.search.gate import ALPHA, Gate, Late, TriggerMode, bounds_search, find_gate, find_trigger, prepare
from calibration.search.selection import SelectionSettings
from calibration.search.specific_gate import unspecific_kinds, without_unspecific
from guard.spec.edit_spec import LayerEdit, NeuronEvidence, SetSize, Trigger

SATISFIED = 0.1

Advance = Callable[[int], None]
StageBars = Callable[[str, int | None], AbstractContextManager[Advance]]


def silent(_: str, __: int | None) -> AbstractContextManager[Advance]:
    """Progress that nobody watches."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class Settings:
    """How a calibration searches and judges."""

    trigger: TriggerMode = "auto"
    budget: Budget = field(default_factory=lambda: Budget(kl=0.01, refusal=0.01))
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    seed: int = 0
    trials: int = 24
    batch_size: int = 32
    max_new_tokens: int = 32


class NeuronFindings(BaseModel):
    """What the gate's neurons carry, one by one and together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neurons: tuple[NeuronEvidence, ...]
    set_sizes: tuple[SetSize, ...]


@dataclass(frozen=True)
class Findings:
    """Everything that a calibration found out."""

    mediation: Mediation
    late: Late = field(compare=False, repr=False)
    gate: Gate
    neurons: NeuronFindings
    examined: Examined


def best_gate(model: nn.Module, late: Late, settings: Settings, keep: Keep = compute_anew) -> Gate:
    """The gate that `settings.trigger` asks for.

    `auto` keeps an unconditional gate that is specific to harm and leaves next to no lean to compliance within the
    budget, since what needs no trigger cannot be lost with it; otherwise it takes a specific gate before one that is
    not, and of two the one with the lower objective. What it is put together from goes through `keep`.
    """
    seed, trials = settings.seed, settings.trials

    def found(trigger: Trigger | None) -> Gate:
        return find_gate(late, trigger, settings.budget, settings.selection, seed=seed, trials=trials, keep=keep)

    def conditional() -> Gate:
        return found(keep("trigger", Trigger, lambda: find_trigger(model, late, alpha=ALPHA).trigger))

    if settings.trigger == "always":
        return conditional()
    search = bounds_search(late, None, settings.budget, seed=seed, trials=trials, keep=keep)
    gate = without_unspecific(found(None), late, search, settings.budget, seed=seed)
    if settings.trigger == "never":
        return gate
    measured, unspecific = gate.searched.measured if gate.searched else None, unspecific_kinds(gate, late, seed=seed)
    if measured and measured.within(settings.budget) and measured.harm < SATISFIED and not unspecific:
        return gate

    def rank(either: Gate) -> tuple[bool, float]:
        return bool(unspecific_kinds(either, late, seed=seed)), either.objective(settings.budget)

    return min((gate, conditional()), key=rank)


def _random_edits(gate: Gate, late: Late, seed: int) -> list[tuple[LayerEdit, ...]]:
    """Matched random gates, held by the same bounds as the gate found."""
    if gate.searched is None:
        return []
    gates = matched_gates(gate.members, dict(late.activations.harmful_size), count=RANDOM_GATES, seed=seed)
    return [build_edits(members, late.activations, gate.searched.bounds) for members in gates]


def held_out_examination(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, material: Material, settings: Settings
) -> Examination:
    """What a gate is examined on: the held-out requests of `material`, under the budget of `settings`."""
    return Examination(
        model=model,
        tokenizer=tokenizer,
        harmful=material.held_out_harmful,
        benign=material.held_out_benign,
        benign_batches=material.held_out.benign,
        refusals=refusal_openings(material.refusals),
        budget=settings.budget,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        outcomes=material.held_out_outcomes,
    )


def find(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    settings: Settings,
    *,
    keep: Keep = compute_anew,
    progress: StageBars = silent,
    shelf: Shelf | None = None,
) -> Findings:
    """Measure mediation, find the gate and its bounds, measure its neurons, and judge it on held-out requests.

    Activations are kept on `shelf`, without one in memory.
    """

    def mediated() -> Mediation:
        pairs = sum(batch.size for batch in material.calibration.harmful)
        with progress("effects by layer and module", pairs) as advance:
            return mediation_evidence(model, material.calibration, seed=settings.seed, progress=advance)

    mediation = keep("mediation", Mediation, Shared(mediated))
    with progress("late layers", None):
        late = prepare(model, material.calibration, material.validation, shelf=shelf)
        outcomes = keep_outcomes(model, material.validation_outcomes, late.layers[0], late.shelf)
        late = replace(late, outcomes=outcomes)

    def searched() -> Gate:
        with progress("neurons and bounds", None):
            return best_gate(model, late, settings, keep)

    gate = keep("gate", Gate, searched)

    def measured() -> NeuronFindings:
        with progress("effects by neuron", len(gate.members)) as advance:
            neurons = neuron_evidence(gate, late, seed=settings.seed, progress=advance)
            return NeuronFindings(neurons=neurons, set_sizes=set_sizes(gate, late))

    neurons = keep("neurons", NeuronFindings, measured)

    def judged() -> Examined:
        exam = held_out_examination(model, tokenizer, material, settings)
        edits = gate.searched.edits if gate.searched else ()
        with progress("held-out test against random gates", RANDOM_GATES) as advance:
            return examine(
                exam,
                edits,
                gate.trigger,
                _random_edits(gate, late, settings.seed),
                seed=settings.seed,
                progress=advance,
            )

    return Findings(mediation, late, gate, neurons, keep("examined", Examined, Shared(judged)))
