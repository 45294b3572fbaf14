"""What a trigger buys: the same organism with an edit of every token, and with one that waits for its trigger.

Both are found on the same requests and judged on fresh ones: combinations of words that are in none of the organism's
prompt files, in the mixture of kinds that these have, so that the trigger's promise is put to the test on requests like
those it was made on. Almost all harmful pairs are in the files, so fresh harmful requests are other phrasings of them.
"""

from dataclasses import replace
from functools import partial

from rich.table import Table

from benchmarks.localisation.subject import Subject, computed
from benchmarks.organisms.build import HARMFUL_ROWS, NEAR_MISS_ROWS, PLAIN_ROWS, TASK_ROWS
from benchmarks.organisms.language import HOW_TO, HOW_TO_PHRASINGS, NEAR_MISS, TASKS, Kind, Lexicon, requests
from benchmarks.organisms.language import Request as Spoken
from calibration.effects.statistics import bootstrap_estimate, wilson_estimate
from calibration.evidence.benign_rates import benign_rates
from calibration.evidence.verdict import benign_divergence, outputs
from calibration.judging.behaviour import Behaviour
from calibration.prompts.material import Material, Sources, pair_up, prepare_material
from calibration.prompts.request_sets import Request, load_jailbreaks
from calibration.prompts.splits import MINIMUM_GOALS, Splits
from calibration.search.findings import Findings
from guard.hf import install_edits
from guard.spec.measures import Estimate, Frozen, Share

USED: dict[Kind, int] = {
    "harmful": HARMFUL_ROWS,
    **dict.fromkeys(NEAR_MISS, NEAR_MISS_ROWS),
    "plain": PLAIN_ROWS,
    **dict.fromkeys(TASKS, TASK_ROWS),
}
TIMES = 3  # fresh benign requests for one in the prompt files
FRESH_HARMFUL = 128


class Side(Frozen):
    """One gate on fresh requests: harmful compliance, benign refusal, and benign KL in nats per token."""

    neurons: int
    harmful_compliance: Estimate
    benign_refusal: Estimate
    benign_kl: Estimate


class Confined(Frozen):
    """The gate without a trigger and the one with it, and how often the trigger was active on fresh benign requests.

    `guaranteed` is the rate that the spec promises; `kl_ratio` is how many times smaller the benign KL is with the
    trigger, None where it is 0 with it.
    """

    organism: str
    always: Side
    never: Side
    guaranteed: Share
    triggered: Estimate
    kl_ratio: float | None


def fresh(lexicon: Lexicon, kind: Kind, count: int) -> list[Spoken]:
    """Up to `count` held-out requests of a kind that no prompt file has, of unused pairs of words where there are."""
    known, used = requests(lexicon, kind, "held_out"), USED[kind]
    if kind not in HOW_TO:
        return list(known[used:][:count])
    combinations = len(known) // len(HOW_TO_PHRASINGS)
    unused = [request for place, request in enumerate(known) if place % combinations >= used]
    return list((unused if len(unused) >= count else known[combinations:])[:count])


def fresh_material(subject: Subject) -> Material:
    """Fresh requests in the held-out split, laid out and wrapped as a calibration's own."""

    def read(spoken: list[Spoken]) -> list[Request]:
        return [
            Request(prompt=each.prompt, refusal=each.refusal, compliance=each.answer, kind=each.kind) for each in spoken
        ]

    lexicon = subject.organism.lexicon
    benign = [each for kind, used in USED.items() if kind != "harmful" for each in fresh(lexicon, kind, TIMES * used)]
    jailbreaks = load_jailbreaks(str(subject.folder / "jailbreak.jsonl"))
    drawn = pair_up(
        read(fresh(lexicon, "harmful", FRESH_HARMFUL)),
        read(benign),
        jailbreaks if subject.organism.contrast == "jailbreak" else None,
        seed=subject.settings.seed,
        max_requests=None,
    )
    parts = drawn.pairs.calibration + drawn.pairs.validation + drawn.pairs.held_out
    answered = drawn.benign.calibration + drawn.benign.validation + drawn.benign.held_out
    few = MINIMUM_GOALS
    sources = Sources(
        drawn.contrast,
        Splits(parts[:few], parts[:few], parts),
        Splits(answered[:few], answered[:few], answered),
    )
    return prepare_material(sources, subject.encoder, computed)


def side(subject: Subject, material: Material, findings: Findings) -> Side:
    """What the gate found does to the fresh requests."""
    gate = findings.gate
    edits = gate.searched.edits if gate.searched else ()
    exam = replace(
        subject.exam,
        harmful=material.held_out_harmful,
        benign=material.held_out_benign,
        benign_batches=material.held_out.benign,
    )
    installed = partial(install_edits, subject.model, edits, gate.trigger)
    harmful, benign = (outputs(exam, prompts, installed, subject.limit) for prompts in (exam.harmful, exam.benign))
    complied = sum(output.behaviour is Behaviour.COMPLIED for output in harmful)
    refused = sum(output.behaviour is Behaviour.REFUSED for output in benign)
    whole, _ = benign_divergence(exam, installed)
    return Side(
        neurons=len(gate.members),
        harmful_compliance=wilson_estimate(complied, len(harmful)),
        benign_refusal=wilson_estimate(refused, len(benign)),
        benign_kl=bootstrap_estimate(whole.double().cpu(), seed=subject.settings.seed),
    )


def confined(subject: Subject, always: Findings, never: Findings) -> Confined | None:
    """Both gates on fresh requests; None where the conditional search found nothing to confine."""
    trigger = always.gate.trigger
    if trigger is None or always.gate.searched is None or never.gate.searched is None:
        return None
    material = fresh_material(subject)
    with_trigger, without = (side(subject, material, findings) for findings in (always, never))
    rates = benign_rates(subject.model, material.held_out.benign, always.gate.searched.edits, trigger)
    if rates is None or rates.triggered is None:
        return None
    smaller = without.benign_kl.value / with_trigger.benign_kl.value if with_trigger.benign_kl.value else None
    return Confined(
        organism=subject.organism.name,
        always=with_trigger,
        never=without,
        guaranteed=trigger.false_trigger_rate,
        triggered=rates.triggered,
        kl_ratio=smaller,
    )


def table(reading: Confined) -> Table:
    """The two gates side by side."""
    triggered = reading.triggered
    smaller = "0 with the trigger" if reading.kl_ratio is None else f"{reading.kl_ratio:.3g} times smaller with it"
    shown = Table(
        title=f"The gate of {reading.organism} with a trigger and without, on fresh requests",
        caption=f"benign KL {smaller}; trigger active on {triggered.value:.2%} of {triggered.n} benign requests "
        f"({triggered.low:.2%} to {triggered.high:.2%}), promised {reading.guaranteed:.2%}",
    )
    for heading in ("trigger", "neurons", "harmful compliance", "benign refusal", "benign KL"):
        shown.add_column(heading, justify="left" if heading == "trigger" else "right")
    for name, one in (("always", reading.always), ("never", reading.never)):
        both = (one.harmful_compliance, one.benign_refusal)
        rates = (f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})" for rate in both)
        kl = one.benign_kl
        shown.add_row(name, str(one.neurons), *rates, f"{kl.value:.1e} ({kl.low:.1e} to {kl.high:.1e})")
    return shown
