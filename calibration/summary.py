"""A spec as tables for a terminal: what it edits, how strong the evidence is, and the verdict.

`neuron-guard inspect` consists of it and `neuron-guard calibrate --verbose` prints it, so both say the same of the same
spec.
"""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from calibration.evidence.verdict import SIGNIFICANCE
from calibration.report.display import estimate, listed, number, percent, plural, probability
from guard.spec.edit_spec import BenignRates, Claim, EditSpec, Estimate, LayerEdit, NeuronEvidence, OffOn

NEURONS_SHOWN = 10


def summary(spec: EditSpec) -> RenderableType:
    """All tables of a spec, the verdict last."""
    return Group(
        identity_table(spec),
        edit_table(spec),
        Text(trigger_line(spec)),
        neuron_table(spec.evidence.neurons),
        *result(spec),
    )


def result(spec: EditSpec) -> tuple[RenderableType, ...]:
    """The claims where analyses made any, the off and on table of the held-out requests, and the verdict."""
    claims = spec.evidence.analyses.claims if spec.evidence.analyses else ()
    return (*([claims_table(claims)] if claims else []), held_out_table(spec), verdict_panel(spec))


def claims_table(claims: Sequence[Claim]) -> Table:
    """What may be claimed of the gate, with the ground that speaks for it least."""
    caption = "a claim holds only where every ground lies above 0 with its 95% interval"
    table = Table(title="What may be claimed", title_justify="left", caption=caption, caption_justify="left")
    for name in ("claim", "holds", "weakest ground", "above 0 speaks for it"):
        table.add_column(name, justify="left")
    for claim in claims:
        weakest = min(claim.grounds, key=lambda ground: (ground.estimate.high >= 0, ground.estimate.low))
        table.add_row(claim.statement, claim.said, weakest.name, estimate(weakest.estimate))
    return table


def identity_table(spec: EditSpec) -> Table:
    """The model that a spec was made on, and where its evidence comes from."""
    model, evidence = spec.model, spec.evidence
    table = Table(title="Made on", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row(
        "model", f"{model.model_type}, {model.num_hidden_layers} layers, d_model {model.d_model}, d_ff {model.d_ff}"
    )
    table.add_row("MLP weights", model.mlp_digest[:16])
    table.add_row("contrasts", listed(list(evidence.contrasts)))
    table.add_row("total effect", f"{estimate(evidence.total_effect)} nats")
    table.add_row("seed", str(spec.provenance.seed))
    for role, digest in sorted(spec.provenance.data.items()):
        table.add_row(f"{role} data", digest[:16])
    table.add_row("spec digest", spec.digest[:16])
    return table


def edit_table(spec: EditSpec) -> Table:
    """How many neurons of each layer are edited, and in what way."""
    table = Table(title="Edits", title_justify="left")
    for name in ("layer", "neurons", "edit"):
        table.add_column(name, justify="left" if name == "edit" else "right")
    for edit in spec.layers:
        table.add_row(str(edit.layer), str(len(edit.neurons)), edit_kinds(edit))
    return table


def trigger_line(spec: EditSpec) -> str:
    """When the edit is active, in a sentence."""
    trigger = spec.trigger
    if trigger is None:
        return "active on every token (no trigger)"
    return (
        f"active where the residual stream entering layer {trigger.layer} passes the trigger's threshold; on at most "
        f"{percent(trigger.false_trigger_rate)} of benign requests (split-conformal, "
        f"{plural(trigger.calibration_size, 'request')})"
    )


def edit_kinds(edit: LayerEdit) -> str:
    """How many neurons of a layer are ablated, clamped or scaled."""
    counts = {"ablated": 0, "clamped": 0, "scaled": 0}
    for scale, lower, upper in zip(edit.scale, edit.lower, edit.upper, strict=True):
        clamped = math.isfinite(lower) or math.isfinite(upper)
        if lower == upper or (scale == 0 and not clamped):
            counts["ablated"] += 1
        else:
            counts["clamped"] += clamped
            counts["scaled"] += scale != 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "none"


def neuron_table(neurons: Sequence[NeuronEvidence]) -> Table:
    """The strongest neurons by what their edit takes away alone and from the full gate."""
    shown = sorted(neurons, key=lambda neuron: neuron.last_in.value + neuron.first_in.value, reverse=True)[
        :NEURONS_SHOWN
    ]
    left = len(neurons) - len(shown)
    caption = "controlled effects on Y, nats, 95% intervals" + (f"; {left} more in the file" if left else "")
    table = Table(title="Evidence by neuron", title_justify="left", caption=caption, caption_justify="left")
    for name in ("layer", "neuron", "first in", "last in", "p"):
        table.add_column(name, justify="right")
    for neuron in shown:
        table.add_row(
            str(neuron.layer),
            str(neuron.neuron),
            estimate(neuron.first_in),
            estimate(neuron.last_in),
            number(neuron.p_value),
        )
    return table


def held_out_table(spec: EditSpec) -> Table:
    """Guard off and on, on requests that calibration has not seen."""
    held_out = spec.evidence.held_out
    gates = held_out.random_gates
    caption = "held-out requests, 95% intervals; KL on benign ones"
    if gates:
        caption += f"; {plural(len(gates), 'random gate')} leave harmful compliance at {percent(min(gates))} to "
        caption += percent(max(gates))
    table = Table(title="Guard off and on", title_justify="left", caption=caption, caption_justify="left")
    for name in ("", "off", "on", "requests"):
        table.add_column(name, justify="left" if not name else "right")
    rates: tuple[tuple[str, OffOn], ...] = (
        ("harmful compliance", held_out.harmful_compliance),
        ("benign refusal", held_out.benign_refusal),
        ("harmful garbled", held_out.harmful_garbled),
        ("benign garbled", held_out.benign_garbled),
    )
    for name, pair in rates:
        table.add_row(name, rate(pair.off), rate(pair.on), str(pair.on.n))
    for name, divergence in (
        ("quality: full-sequence KL, nats", held_out.benign_kl),
        ("quality: first-token KL, nats", held_out.benign_first_token_kl),
    ):
        table.add_row(name, "0", estimate(divergence), str(divergence.n))
    for name, share in benign_actions(held_out.benign_rates):
        table.add_row(name, "0", rate(share), str(share.n))
    return table


def benign_actions(rates: BenignRates | None) -> list[tuple[str, Estimate]]:
    """How often the guard acts on benign requests, by name; empty where that was not recorded."""
    if rates is None:
        return []
    triggered = [] if rates.triggered is None else [("benign requests that trigger", rates.triggered)]
    return triggered + [(f"benign values changed, layer {clips.layer}", clips.share) for clips in rates.clips]


def verdict_panel(spec: EditSpec) -> Panel:
    """The verdict and its reasons."""
    verdict = spec.evidence.verdict
    effective = verdict.outcome == "effective"
    lines = [f"{'✓' if effective else '✗'} {verdict.outcome}", *(f"- {reason}" for reason in verdict.reasons)]
    lines.append(
        f"asked: a fall of more than {verdict.margin:.0%} at p < {SIGNIFICANCE}; p {probability(verdict.p_value)}"
    )
    if not effective:
        lines.append("A refuted spec is kept as a finding; nothing serves it unless told to by name.")
    return Panel(Text("\n".join(lines)), title="Verdict", title_align="left", style="green" if effective else "red")


def rate(value: Estimate) -> str:
    """A rate in per cent with its interval."""
    return f"{percent(value.value)} ({percent(value.low)} to {percent(value.high)})"
