"""What the report says of shards: one gate for all kinds of harm, or several."""

from calibration.analyses.analysis import Section
from calibration.report.display import estimate, number, percent, plural
from calibration.report.plot_parts import Plot, axis, dashed, layout, points, whiskers
from guard.analyses.shards import Shards

PLANS = {
    "found": "the gate found",
    "union": "all halves' own gates in one",
    "by cluster": "a trigger for each half's own gate, which a spec cannot hold",
}


def describe(found: Shards) -> Section:
    """The section of the report: the clusters, each part of the gate on both halves, and the plans that were tried."""
    clusters = "one cluster" if found.count == 1 else f"{found.count} clusters"
    paragraphs = [
        f"Beyond the wording of refusals, requests fall into {clusters} by the neurons that they hang on (silhouette "
        f"{number(found.silhouette)}; requests without clusters have one as high with probability "
        f"{number(found.p_value)}). " + _of_gates(found)
    ]
    if found.tried:
        parts = [
            f"{PLANS[each.plan]}: Y {estimate(each.harmful_outcome)} nats, {percent(each.lean_to_refusal)} lean to "
            f"refusal, benign KL {estimate(each.benign_kl)}"
            for each in found.tried
        ]
        better = "" if found.better is None else f" Best within the budget is {PLANS[found.better]}."
        paragraphs.append(f"On held-out requests, {'; '.join(parts)}.{better}")
    return Section("Shards: one gate or several", tuple(paragraphs), (_plot(found),) if found.transfers else ())


def _of_gates(found: Shards) -> str:
    if found.shared is None:
        return "No wording of refusal has enough requests to halve, so nothing is claimed."
    own = "; ".join(
        f"half {place + 1}, {plural(each.requests, 'request')}, has {plural(each.neurons, 'neuron')} that "
        f"{'take' if each.neurons != 1 else 'takes'} {estimate(each.own_effect)} nats from it"
        for place, each in enumerate(found.clusters)
    )
    said = {
        "yes": "So one gate serves all.",
        "no": "So kinds of harm have gates of their own.",
        "undecided": "So it is left open whether one gate serves all.",
    }
    why = "Some part does nothing by itself, so nothing is claimed."
    return (
        f"Within each wording of refusal requests are halved, and the gate's neurons go to the half on which they act "
        f"more: {own}. Beyond half of what its own part takes, the other half's takes {estimate(found.shared)} nats. "
        + (said[found.claims[0].said] if found.claims else why)
    )


def _plot(found: Shards) -> Plot:
    names = [f"{each.source + 1} on {each.target + 1}" for each in found.transfers]
    places = list(range(len(names)))
    other = [each.effect for each in found.transfers]
    own = [found.clusters[each.target].own_effect for each in found.transfers]
    traces = [
        points(
            "the other half's part", places, [each.value for each in other], "$one", error_y=whiskers(other, "$one")
        ),
        points("its own part", places, [each.value for each in own], "$two", "square", error_y=whiskers(own, "$two")),
        dashed([-0.5, len(names) - 0.5], [0.0, 0.0], "no effect"),
    ]
    rows = tuple(
        (name, estimate(there), estimate(here), estimate(each.beyond_half))
        for name, there, here, each in zip(names, other, own, found.transfers, strict=True)
    )
    ticks = {"tickvals": places, "ticktext": names, "range": [-0.5, len(names) - 0.5]}
    return Plot(
        name="shards",
        label="What a half's part of the gate takes from the other half, against what that one's own takes",
        traces=traces,
        layout=layout(300, axis("part of half on requests of half", **ticks), axis("effect, nats")),
        columns=("part on requests", "effect, nats", "own part, nats", "beyond half of its own, nats"),
        rows=rows,
    )
