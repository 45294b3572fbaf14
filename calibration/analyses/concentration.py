"""Concentration: does a set of few late neurons carry the effect, or is it spread over everything?

Neurons are moved, at every token, to their mean on reference requests, as an edit would hold them. They are not
patched between the two runs of a pair, for then all that tells one request from another counts, and that is spread
over every late neuron wherever the gate is; and what counts of a set is what the refusal's log-probability gains, half
of Y, for the other half falls as more and more of the model is held still. Gradients order the neurons, in rounds,
each given those moved before; what is told of a set is its joint effect, run as a set, and of single neurons their
exact effects. Sets are chosen on one half of the requests and measured on the other, so that choosing does not flatter
them. The joint effect to be carried is the most that a best set of any size takes, since beyond it neurons are moved
that carry refusal. The claim:

    sparse   a tenth of the late neurons carries nine tenths of the joint effect

A tenth is where it parts from "spread" by an order of magnitude: of an effect that all neurons share alike, a tenth of
them carries a tenth. How much fewer suffice is told as a number. The gate is judged as a circuit among the carriers on
held-out requests: faithfulness is what comes back when all of them but the gate are ablated, completeness asks what is
left when the gate alone is (Marks et al. 2024, after Wang et al. 2022; "ablated" is "moved" here). What this errs on: a
few neurons that no gradient shows, neither at first nor given the others, are missed, so "no" means "not by what was
found".

Cost: four orders of the late neurons, a round each for 1, 4, 16, ... of them, about 60 runs of the late layers on at
most 64 requests, and the exact effects of at most 96 neurons: linear in requests and, but for the number of rounds, in
d_ff; in the late layers linear, times the layers after each for the exact effects.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from calibration.analyses.analysis import Analysis, Numbers, Section
from calibration.analyses.neuron_sets import NeuronSets, Order
from calibration.analyses.subject import Subject
from calibration.analyses.units import first_of
from calibration.effects.means import estimate_of_means, ratio
from calibration.effects.outcome import outcome
from calibration.effects.statistics import Floats, bootstrap_estimate, bootstrap_estimates
from calibration.report.display import estimate, listed, number, percent, plural
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, points, whiskers
from calibration.runs.resume import record
from calibration.search.findings import Advance
from calibration.search.selection import Member
from guard.spec.claim import Claim, Ground, claim
from guard.spec.measures import Count, Estimate, Frozen, Growing, Share


class JointEffect(Frozen):
    """Joint effects of sets of one size: the best, one drawn at random, and all late neurons but the best."""

    size: Count
    best: Estimate
    random: Estimate
    complement: Estimate


class Needed(Frozen):
    """How many of the best neurons carry a share of the joint effect."""

    share: Share
    neurons: Count


class Overlap(Frozen):
    """The `size` best neurons moved together, against the sums of their single effects.

    Together more than the sum first in (alone): they stand in for each other (redundancy). Together more than the sum
    last in (on top of all the others): what one has left to take falls with every other that is moved already.
    """

    size: Count
    together: Estimate
    first_in: Estimate
    last_in: Estimate


class Circuit(Frozen):
    """The gate as a circuit within the carriers, on held-out requests, as shares of the carriers' joint effect.

    `faithfulness`: what comes back when the gate alone is left as it is. `without`: what is left when the gate alone is
    moved, so that a complete gate leaves next to nothing.
    """

    faithfulness: Estimate
    without: Estimate


class Concentration(Numbers, Growing):
    """How the effect of the late neurons is spread over them.

    `carriers` is the size of the best set that takes most, `joint` its effect, `everything` that of all late neurons.
    `participation` is the participation ratio of the exact effects of the `screened` neurons, each the mean of first in
    and last in: how many neurons of equal effect would be as concentrated. `sparse` are the claim's
    grounds. `circuit` is None without a gate, `needed` empty where there is no joint effect to carry.
    """

    late_neurons: Count
    carriers: Count
    screened: Count
    joint: Estimate
    everything: Estimate
    curve: tuple[JointEffect, ...]
    needed: tuple[Needed, ...]
    participation: Estimate
    overlap: Overlap
    sparse: tuple[Ground, ...] = Field(min_length=1)
    circuit: Circuit | None = None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """That few neurons carry it."""
        return (claim("sparse", STATEMENT, self.sparse),)


REQUESTS = 64
SCREENED = 96
SPLITS = 4
SHARES = (0.5, 0.9, 0.99)
CARRIED, TENTH = 0.9, 0.1
STATEMENT = "few neurons carry it: nine tenths of the joint effect of the late neurons by a tenth of them"


def measure(subject: Subject, advance: Advance) -> Concentration:
    """How the effect of the late neurons is spread over them."""
    seed, kept = subject.settings.seed, subject.late.calibration
    generator = torch.Generator().manual_seed(seed)
    plain, harm = (list(kept[kind].where(None, limit=REQUESTS).runs) for kind in ("reference", "harmful"))
    sets = NeuronSets(harm, plain)
    orders = []
    for _ in range(SPLITS):
        orders.append(sets.order(sizes(sets.count), generator))
        advance(1)
    best = orders[0]
    curve = _curve(sets, best, generator, seed)
    advance(1)
    carriers = max(curve, key=lambda point: point.best.value).size
    joint = sets.effect(first_of(best.apart, carriers))
    needed = _needed(sets, best.apart, float(joint.mean()), carriers)
    size = next((found.neurons for found in needed if found.share == CARRIED), min(SCREENED, sets.count))
    screened = best.overall[:SCREENED]
    core = screened[:size]
    first_in, last_in = sets.single(screened, core)
    advance(1)
    return Concentration(
        late_neurons=sets.count,
        carriers=carriers,
        screened=len(screened),
        joint=bootstrap_estimate(joint, seed=seed),
        everything=bootstrap_estimate(sets.effect(torch.ones(1, sets.count)), seed=seed),
        curve=curve,
        needed=needed,
        participation=estimate_of_means(((first_in + last_in) / 2).numpy(), participation_ratio, seed=seed),
        overlap=_overlap(sets, core, first_in[:, : len(core)], last_in[:, : len(core)], seed),
        circuit=_circuit(subject, sets, best.overall[:carriers], seed) if subject.gate.members else None,
        sparse=_sparse(sets, [order.apart for order in orders], carriers, seed),
    )


def total(_: Subject) -> int:
    """How far the progress goes: orders, joint effects, single effects."""
    return SPLITS + 2


def _tenth(count: int) -> int:
    return max(1, int(TENTH * count))


def sizes(count: int) -> list[int]:
    """The sizes of sets after each round of ordering `count` neurons: 1, 4, 16, ..., a tenth, all."""
    return sorted({*(4**power for power in range(16) if 4**power < count), _tenth(count), count})


def _curve(sets: NeuronSets, best: Order, generator: torch.Generator, seed: int) -> tuple[JointEffect, ...]:
    """Joint effects of sets of 1, 2, 4, ... neurons, a tenth of them, and all."""
    steps = sorted({*(2**power for power in range(sets.count.bit_length())), _tenth(sets.count), sets.count})
    columns = []
    for size in steps:
        chosen = first_of(best.apart, size)
        drawn = first_of(torch.rand(chosen.shape, generator=generator).argsort(dim=1), size)
        columns += [sets.effect(chosen), sets.effect(drawn), sets.effect(1 - chosen)]
    estimates = iter(bootstrap_estimates(torch.stack(columns, 1), seed=seed))
    return tuple(
        JointEffect(size=size, best=next(estimates), random=next(estimates), complement=next(estimates))
        for size in steps
    )


def _needed(sets: NeuronSets, order: Tensor, whole: float, most: int) -> tuple[Needed, ...]:
    """The fewest best neurons that carry each of `SHARES` of the joint effect `whole`, up to `most`."""
    if whole <= 0:
        return ()
    known: dict[int, float] = {most: whole}

    def carried(size: int) -> float:
        if size not in known:
            known[size] = float(sets.effect(first_of(order, size)).mean())
        return known[size]

    return tuple(Needed(share=share, neurons=fewest(share * whole, carried, most)) for share in SHARES)


def fewest(wanted: float, carried: Callable[[int], float], most: int) -> int:
    """The smallest size up to `most` with `carried(size)` >= `wanted`, were it to grow with size; by doubling first."""
    low, high = 0, 1
    while high < most and carried(high) < wanted:
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if carried(middle) >= wanted else (middle, high)
    return high


def participation_ratio(means: Floats) -> Floats:
    """(sum of |e|)^2 / (sum of e^2) of mean effects [resamples, k]: k where all are alike, 1 where one has all."""
    amounts = np.abs(means)
    squares = (amounts**2).sum(-1)
    return np.asarray(np.divide(amounts.sum(-1) ** 2, squares, out=np.zeros_like(squares), where=squares > 0))


def _overlap(sets: NeuronSets, core: Tensor, first_in: Tensor, last_in: Tensor, seed: int) -> Overlap:
    """The best neurons together against the sums of their single effects [requests, core]."""
    together = sets.effect(torch.zeros(1, sets.count).index_fill(1, core, 1.0), outcome)
    columns = torch.stack([together, first_in.sum(1), last_in.sum(1)], 1)
    jointly, alone, last = bootstrap_estimates(columns, seed=seed)
    return Overlap(size=len(core), together=jointly, first_in=alone, last_in=last)


def _circuit(subject: Subject, calibrated: NeuronSets, carriers: Tensor, seed: int) -> Circuit:
    """The gate among the carriers on held-out requests: all but the gate moved, and the gate alone."""
    first = calibrated.layers[0]
    held_out = [record(subject.model, batch, first) for batch in subject.material.held_out.harmful]
    sets = NeuronSets(held_out, values=calibrated.values)
    gate = gate_weights(subject.gate.members, calibrated.layers, calibrated.widths)
    among = gate.maximum(torch.zeros_like(gate).index_fill(1, carriers, 1.0))
    whole, others, alone = (sets.effect(weights) for weights in (among, among - gate, gate))

    def share(of: Tensor) -> Estimate:
        return estimate_of_means(torch.stack([whole - of, whole], 1), ratio, seed=seed)

    return Circuit(faithfulness=share(others), without=share(alone))


def gate_weights(members: Sequence[Member], layers: Sequence[int], widths: Sequence[int]) -> Tensor:
    """1 for each member among all late neurons, [1, n]."""
    weights = torch.zeros(1, sum(widths))
    for member in members:
        weights[0, sum(widths[: layers.index(member.layer)]) + member.neuron] = 1.0
    return weights


def _sparse(sets: NeuronSets, orders: Sequence[Tensor], carriers: int, seed: int) -> tuple[Ground, ...]:
    """The claim's grounds, on requests that did not choose: intervals are the widest over several halvings of them."""
    size = _tenth(sets.count)
    joint = [sets.effect(first_of(order, carriers)) for order in orders]
    beyond = [sets.effect(first_of(order, size)) - CARRIED * of for order, of in zip(orders, joint, strict=True)]
    return (
        Ground(name="joint effect of the neurons that carry it, nats", estimate=_widest(joint, seed)),
        Ground(name=f"the best {size} less nine tenths of the {carriers} that carry it, nats",
               estimate=_widest(beyond, seed)),
    )  # fmt: skip


def _widest(columns: Sequence[Tensor], seed: int) -> Estimate:
    """The mean of several measurements of one thing, with the interval that holds all of theirs."""
    each = bootstrap_estimates(torch.stack(list(columns), 1), seed=seed)
    return Estimate(
        value=sum(estimate.value for estimate in each) / len(each),
        low=min(estimate.low for estimate in each),
        high=max(estimate.high for estimate in each),
        n=each[0].n,
    )


LINES = {
    "best": ("best set", "$one", "circle"),
    "random": ("random set", "$quiet", "x"),
    "complement": ("all but the best", "$two", "square"),
}
SMALL = 0.1  # of the joint effect: less is called no difference


def describe(found: Concentration) -> Section:
    """The section of the report: how many neurons carry it, how they overlap, the gate as a circuit, the curve."""
    (sparse,) = found.claims
    carried = "" if not found.needed else (
        " "
        + listed([f"{percent(need.share)} by {plural(need.neurons, 'neuron')}" for need in found.needed])
        + f" of {found.late_neurons:,}; "
        f"the participation ratio of the {found.screened} strongest is {estimate(found.participation)}."
    )  # fmt: skip
    told = {
        "yes": "Few neurons carry the effect.",
        "no": "The effect is spread: no tenth of the late neurons that was found carries nine tenths of it.",
        "undecided": "Whether few neurons carry the effect is undecided.",
    }[sparse.said]
    paragraphs = [
        "Late neurons are moved to their mean on reference requests, as sets. The sets are chosen on one half of the "
        f"requests and measured on the other. {told} The best set adds {estimate(found.joint)} "
        "nats to a refusal, all late "
        f"neurons {estimate(found.everything)}." + (" Carried:" + carried if carried else ""),
        _overlap_in_words(found.overlap),
    ]
    if found.circuit is not None:
        paragraphs.append(_circuit_in_words(found.circuit))
    return Section("Concentration: few neurons or many", tuple(paragraphs), (_curve_plot(found),))


def _overlap_in_words(overlap: Overlap) -> str:
    together, first, last = overlap.together.value, overlap.first_in.value, overlap.last_in.value
    if together > first + SMALL * abs(together):
        meaning = "They stand in for each other, so that one by one they seem weaker than they are."
    elif together < first - SMALL * abs(together):
        meaning = "Together they take less than one by one: each alone does part of what the others do."
    else:
        meaning = "Their effects add up."
    return (
        f"The best {plural(overlap.size, 'neuron')} together take {estimate(overlap.together)} nats from Y; one by "
        "one, "
        f"alone, they sum to {number(first)}, and each on top of all the others to {number(last)}. {meaning}"
    )


def _circuit_in_words(circuit: Circuit) -> str:
    return (
        "As a circuit, on held-out requests: with all neurons that carry the effect moved but the gate, "
        f"{estimate(circuit.faithfulness)} of it comes back (faithfulness; 1 is all); with the gate alone moved, "
        f"{estimate(circuit.without)} of it is left (completeness; 0 is nothing left)."
    )


def _curve_plot(found: Concentration) -> Plot:
    """Joint effect against the size of the set: the best, a random one, all but the best."""
    sizes = [point.size for point in found.curve]
    traces: list[Json] = []
    for field, (name, colour, symbol) in LINES.items():
        values = [getattr(point, field) for point in found.curve]
        traces.append(
            points(name, sizes, [value.value for value in values], colour, symbol, mode="lines+markers",
                   error_y=whiskers(values, colour), text=[estimate(value) for value in values],
                   hovertemplate="%{x} neurons: %{text} nats<extra>" + name + "</extra>")
        )  # fmt: skip
    joint = found.joint.value
    traces.append(dashed([sizes[0], sizes[-1]], [0.9 * joint, 0.9 * joint], "nine tenths"))
    ticks = [size for place, size in enumerate(sizes) if place % max(1, len(sizes) // 6) == 0]
    x_axis = axis("neurons in the set", type="log", zeroline=False, tickvals=ticks, ticktext=[str(t) for t in ticks])
    best = max(found.curve, key=lambda point: point.best.value)
    label = (
        f"Joint controlled effect by size of the set, in nats: the best take up to {number(best.best.value)} with "
        f"{plural(best.size, 'neuron')} of {found.late_neurons:,}; random ones {number(best.random.value)}."
    )
    rows = tuple(
        (str(point.size), estimate(point.best), estimate(point.random), estimate(point.complement))
        for point in found.curve
    )
    columns = ("neurons", "best, nats", "random, nats", "all but the best, nats")
    shape = layout(360, x_axis, axis("gain of the refusal, nats", zerolinewidth=1.5))
    return Plot("concentration", label, traces, shape, columns, rows)


ANALYSIS = Analysis(
    order=20,
    name="concentration",
    title="Concentration",
    kind=Concentration,
    claims=("sparse",),
    measure=measure,
    describe=describe,
    total=total,
)
