"""Do kinds of harm share one gate? Requests are halved, and the gate falls into what serves one half or the other.

Within each wording of refusal the gate's neurons are parted: each goes to the half on which it
acts more. If kinds of harm have gates of their own, each part takes compliance from its half and leaves the other as it
is, a double dissociation (Teuber 1955); if they share one, a part does to both what it does to either. Halves and parts
are found on calibration requests and tried on validation requests. No gate is grown on few requests to be tried on
others: a small one may fail there for wording alone, and one that grew large takes in the neurons of its neighbours.

Wordings are kept apart because a gate has to talk down the refusal that the model would give, and other neurons do it
for "Sorry" than for "No". Left to themselves clusters follow these wordings, and a gate of one fails on another though
one gate serves all. So the wording of refusal, its first token, is held constant: requests are halved within each, and
only such halves compared.

What tells one kind of harm from another is which late neurons a request's lean to compliance hangs on, its signature. A
signature has two halves of equal weight: the gradient with respect to the candidate neurons, put through a random
projection where they are many (Johnson and Lindenstrauss 1984), and the effects of moving the strongest of them.
Directions are compared, not lengths, so that a request that leans harder is no other kind. Both are of the first token
of compliance alone, at which it is decided: what an answer goes on to say, and refusals of several wordings, would pass
for several kinds of harm. Clusters of signatures are found by k-means, their number by the silhouette, and whether
there are any by a test (after Liu et al. 2008, SigClust): the silhouette must be higher than that of points drawn from
one normal distribution of the same mean and covariance. Kinds that differ only in spread are not told apart.

The spec has one trigger. So a trigger for each cluster cannot be written down; it is measured, so that the evidence
says what that costs. All plans hold their neurons by the bounds that were found for the gate.

Effects are what a part, moved to its replacement values, takes from the log-odds of the first token of compliance, on
validation requests, in nats. (In numbers without `shared`, clusters are of all requests, each with a gate grown on it,
and effects are of the log-probability.)

Where one gate does not serve all, three plans are tried on held-out requests. It costs two signatures of every request
(a forward and a backward pass over the late layers, and the exact effects of a few neurons), the linear effects of the
gate's neurons with none of it edited and with all of it, and a forward pass for each part; where plans are tried, one
growth of a gate per half. All of it grows in proportion to requests and late layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.random_projection import GaussianRandomProjection
from torch import Tensor

from calibration.analyses.analysis import Analysis, Numbers, Section
from calibration.analyses.subject import Subject
from calibration.effects.attribution import sum_rows
from calibration.effects.outcome import full_sequence_kl, log_odds, outcome
from calibration.effects.statistics import bootstrap_estimate
from calibration.prompts.sequences import Batch
from calibration.report.display import estimate, number, percent, plural
from calibration.report.plot_parts import Plot, axis, dashed, layout, points, whiskers
from calibration.runs.stage import Kept, keep
from calibration.runs.trial import Transform, edit_transforms, transformed
from calibration.search.bounds import build_edits
from calibration.search.findings import Advance
from calibration.search.gate import ALPHA, SEARCHED
from calibration.search.selection import Masks, Member, Requests, grow_gate, joint_outcomes, linear_effects
from calibration.search.trigger import TokenStates, entering_states, fit_trigger
from guard.spec.claim import Claim, Ground, claim
from guard.spec.edit import LayerEdit, Trigger
from guard.spec.measures import Count, Estimate, Finite, Frozen, Growing, Share

Plan = Literal["found", "union", "by cluster"]


class Cluster(Frozen):
    """One half: its calibration requests, the neurons of its part of the gate, and what that takes from them."""

    requests: Count
    neurons: Count
    own_effect: Estimate


class Transfer(Frozen):
    """The part of half `source` on the requests of half `target`, of the same wording.

    `beyond_half` is its effect less half of what the target's own part takes, paired over the requests.
    """

    source: Count
    target: Count
    effect: Estimate
    beyond_half: Estimate


class Tried(Frozen):
    """A plan on held-out requests: the gate found; all clusters' neurons in one gate; a trigger for each cluster's."""

    plan: Plan
    harmful_outcome: Estimate
    lean_to_refusal: Share
    benign_kl: Estimate


class Shards(Numbers, Growing):
    """`count` is the number of clusters that the requests fall into beyond the wording of their refusals.

    `silhouette` is that of the clusters, and `p_value` says how often requests without clusters have one as high.
    `clusters` are the halves, 0 and 1 of one wording, 2 and 3 of the next. Over all of them, each counting alike,
    `shared` is what the other half's part takes less half of what its own does, and `carried` what its own part takes
    less half of what the whole gate does. `tried` is empty where one gate serves all, and `better` the plan of least
    harm within the budget of KL.
    """

    count: Count
    silhouette: Finite
    p_value: Share
    clusters: tuple[Cluster, ...]
    transfers: tuple[Transfer, ...]
    tried: tuple[Tried, ...] = ()
    better: Plan | None = None
    shared: Estimate | None = None
    carried: Estimate | None = None

    @property
    def dissociated(self) -> bool:
        """Whether every part does something on its own half, and together they carry the greater part of the gate."""
        return (
            self.carried is not None
            and self.carried.low > 0
            and all(cluster.own_effect.low > 0 for cluster in self.clusters)
        )

    @property
    def claims(self) -> tuple[Claim, ...]:
        """That one gate serves all kinds of harm: its parts do to one half of the requests what they do to the other.

        It is denied where a part leaves the other half as it is, and only if each part acts on its own: where a gate
        does nothing on some requests, or only as a whole, nothing is claimed. Nor is it in specs without `shared`.
        """
        if self.shared is None:
            return ()
        ground = Ground(name="the other half's part of the gate, beyond half of its own", estimate=self.shared)
        made = claim("one_gate", "all kinds of harm pass one gate", (ground,))
        return () if made.said == "no" and not self.dissociated else (made,)


Points = NDArray[np.float64]
MOST_CLUSTERS = 4
SMALLEST_CLUSTER = 8  # requests in a cluster: fewer could not be said anything of
DRAWS = 39
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Clustering:
    """`labels` int [n] of the best clusters, two at least; `count` says how many there really are, 1 if none.

    `assign` gives the cluster of other points.
    """

    count: int
    labels: NDArray[np.int64]
    silhouette: float
    p_value: float
    fitted: KMeans

    def assign(self, points: Points) -> NDArray[np.int64]:
        """The nearest cluster of each of `points` [m, features]."""
        return np.asarray(self.fitted.predict(points), dtype=np.int64)


def cluster(points: Points, seed: int) -> Clustering:
    """The clusters of `points` [n, features], n more than `MOST_CLUSTERS`. The same seed gives the same ones."""
    fitted, silhouette = _best_clustering(points, seed)
    random = np.random.default_rng(seed)
    centred = points - points.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    scale = spread / np.sqrt(len(points))
    as_high = sum(
        _best_clustering(random.standard_normal((len(points), len(spread))) * scale @ axes, seed)[1] >= silhouette
        for _ in range(DRAWS)
    )
    p_value = (as_high + 1) / (DRAWS + 1)
    labels = np.asarray(fitted.labels_, dtype=np.int64)
    return Clustering(fitted.n_clusters if p_value <= SIGNIFICANCE else 1, labels, silhouette, p_value, fitted)


def _best_clustering(points: Points, seed: int) -> tuple[KMeans, float]:
    """The clustering of highest silhouette over the numbers of clusters."""
    tried = [KMeans(count, n_init=4, random_state=seed).fit(points) for count in range(2, MOST_CLUSTERS + 1)]
    found = [each for each in tried if np.bincount(each.labels_).min() >= SMALLEST_CLUSTER] or tried[:1]
    scores = [float(silhouette_score(points, each.labels_)) if len(set(each.labels_)) > 1 else -1.0 for each in found]
    best = int(np.argmax(scores))
    return found[best], scores[best]


FEWEST_IN_HALF = 4  # requests in a half, of either split, below which nothing is said of it
Labels = NDArray[np.int64]


def refusal_wordings(batches: Sequence[Batch]) -> Labels:
    """The first token of each request's refusal, [requests in all batches]."""
    found = torch.cat([batch.targets[batch.size :, 0] for batch in batches])
    return np.asarray(found.cpu().numpy(), dtype=np.int64)


def beyond_wordings(points: Points, wordings: Labels) -> Points:
    """`points` [n, features] less the mean of their wording [n]."""
    centred = points.copy()
    for wording in np.unique(wordings):
        centred[wordings == wording] -= points[wordings == wording].mean(0)
    return centred


def halve(points: Points, wordings: Labels, fresh: Points, fresh_wordings: Labels, seed: int) -> tuple[Labels, Labels]:
    """The halves of `points` [n, features] and of `fresh` [m, features], from 0 on; -1 is in none.

    Halves 0 and 1 are of one wording, 2 and 3 of the next. They are found on `points` by k-means, and `fresh` go to the
    nearer one. A wording is left out where one of its halves has fewer than `FEWEST_IN_HALF` of either.
    """
    labels, fresh_labels = np.full(len(points), -1), np.full(len(fresh), -1)
    count = 0
    for wording in np.unique(wordings):
        mine, theirs = wordings == wording, fresh_wordings == wording
        if min(mine.sum(), theirs.sum()) < 2 * FEWEST_IN_HALF:
            continue
        fitted = KMeans(2, n_init=4, random_state=seed).fit(points[mine])
        found, assigned = fitted.labels_, fitted.predict(fresh[theirs])
        if min(np.bincount(each, minlength=2).min() for each in (found, assigned)) >= FEWEST_IN_HALF:
            labels[mine], fresh_labels[theirs] = count + found, count + assigned
            count += 2
    return labels, fresh_labels


CANDIDATES, STRONGEST, PROJECTED = 512, 24, 64


def first_token(logits: Tensor, batch: Batch) -> Tensor:
    """Log-probability of the first token of each request's compliance, [B], nats."""
    return logits[: batch.size, 0].float().log_softmax(-1).gather(-1, batch.targets[: batch.size, :1])[:, 0]


def first_odds(logits: Tensor, batch: Batch) -> Tensor:
    """Log-odds of the first token of each request's compliance against all others, [B], nats: they do not saturate."""
    first = logits[: batch.size, 0].float()
    own = batch.targets[: batch.size, :1]
    return first.gather(-1, own)[:, 0] - first.scatter(-1, own, -torch.inf).logsumexp(-1)


def gradients(requests: Requests, values: Mapping[int, Tensor]) -> Tensor:
    """The slope of `first_token` in each late neuron, summed over tokens: [B in all runs, layers, d_ff], on the CPU."""
    collected = []
    for run in requests.runs:
        rows = 2 * run.batch.size
        moves = {
            layer: torch.zeros(rows, 1, value.shape[-1], device=run.residual.device, requires_grad=True)
            for layer, value in values.items()
        }

        def moved(move: Tensor) -> Transform:
            return lambda h: h + move.to(h)

        with torch.enable_grad(), transformed(run.model, {layer: moved(move) for layer, move in moves.items()}):
            total = first_token(run.readout_logits(), run.batch).sum()
        found = torch.autograd.grad(total, list(moves.values()))
        collected.append(torch.stack([sum_rows(gradient[:, 0]).cpu() for gradient in found], dim=1))
    return torch.cat(collected)


@dataclass(frozen=True)
class Signatures:
    """How signatures are made: the replacement values by layer, the candidates and the strongest of them, bool
    [layers, d_ff] each, and the projection of the gradients.
    """

    values: Mapping[int, Tensor]
    candidates: Tensor
    strongest: Tensor
    projection: GaussianRandomProjection | None

    @classmethod
    def of(cls, requests: Requests, values: Mapping[int, Tensor], seed: int) -> "Signatures":
        """Candidates are the neurons of largest linear effect on some of `requests`: by root mean square."""
        effects = _effects(requests, values)
        size = effects.square().mean(0).sqrt()  # [layers, d_ff]
        order = size.flatten().argsort(descending=True)
        candidates = torch.zeros(size.numel(), dtype=torch.bool)
        candidates[order[:CANDIDATES]] = True
        strongest = torch.zeros_like(candidates)
        strongest[order[:STRONGEST]] = True
        count = int(candidates.sum())
        projection = None
        if count > PROJECTED:
            projection = GaussianRandomProjection(PROJECTED, random_state=seed).fit(np.zeros((1, count)))
        return cls(values, candidates.view_as(size), strongest.view_as(size), projection)

    def __call__(self, requests: Requests) -> NDArray[np.float64]:
        """The signature of each request, [B in all runs, features]."""
        slopes = gradients(requests, self.values)[:, self.candidates].double().numpy()
        if self.projection is not None:
            slopes = self.projection.transform(slopes)
        effects = _effects(requests, self.values)[:, self.strongest].double().numpy()
        return np.concatenate([_directions(slopes), _directions(effects)], axis=1)


def _effects(requests: Requests, values: Mapping[int, Tensor]) -> Tensor:
    """The linear effect on `first_token` of moving each late neuron, [B in all runs, layers, d_ff]."""
    return torch.stack([each.cpu() for each in linear_effects(requests, Masks(values), first_token).values()], 1)


def _directions(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: NDArray[np.float64] = rows / np.where(length > 0, length, 1.0)
    return directions


Parts = Sequence[tuple[Sequence[LayerEdit], Trigger | None]]


def try_plans(
    subject: Subject, gates: Sequence[Sequence[Member]], labels: NDArray[np.int64], fresh_labels: NDArray[np.int64]
) -> tuple[tuple[Tried, ...], Plan]:
    """Each plan on held-out requests, and the better one; `labels` are of calibration, `fresh_labels` of validation."""
    searched = subject.gate.searched
    if searched is None:
        return (), "found"
    activations, bounds = subject.late.activations, searched.bounds
    union = {(member.layer, member.neuron): member for gate in gates for member in gate}
    plans: dict[Plan, Parts] = {
        "found": [(subject.edits, subject.gate.trigger)],
        "union": [(build_edits(tuple(union.values()), activations, bounds), subject.gate.trigger)],
        "by cluster": [
            (build_edits(gate, activations, bounds), cluster_trigger(subject, labels == label, fresh_labels == label))
            for label, gate in enumerate(gates)
        ],
    }
    split, first = subject.material.held_out, subject.late.layers[0]
    harmful, benign = (keep(subject.model, batches, first) for batches in (split.harmful, split.benign))
    tried = tuple(_tried(plan, parts, harmful, benign, subject.settings.seed) for plan, parts in plans.items())
    within = [each for each in tried if each.benign_kl.value <= subject.settings.budget.kl]
    best = (
        min(within, key=lambda each: each.harmful_outcome.value)
        if within
        else min(tried, key=lambda each: each.benign_kl.value)
    )
    return tried, best.plan


def cluster_trigger(subject: Subject, wanted: NDArray[np.bool_], fresh: NDArray[np.bool_]) -> Trigger:
    """The trigger that tells one cluster's requests from benign ones, at the threshold of `find_trigger`."""
    late = subject.late
    layers = range(1, late.layers[0] + 1)

    def states(split: dict[str, Kept], kind: str, mask: NDArray[np.bool_] | None) -> dict[int, TokenStates]:
        found = entering_states(subject.model, split[kind].batches, layers)
        rows = slice(None) if mask is None else mask.nonzero()[0]
        return {
            layer: TokenStates(each.states[rows], each.mask[rows], each.decisive[rows]) for layer, each in found.items()
        }

    return fit_trigger(
        states(late.calibration, "harmful", wanted),
        states(late.calibration, "benign", None),
        states(late.validation, "harmful", fresh),
        states(late.validation, "benign", None),
        alpha=ALPHA,
    ).trigger


def _tried(plan: Plan, parts: Parts, harmful: Kept, benign: Kept, seed: int) -> Tried:
    """Run all `parts` of a plan at once, each where its own trigger is active."""
    lean, odds = [], []
    for logits, place in _edited(parts, harmful):
        batch = harmful.batches[place]
        lean.append(outcome(logits, batch))
        odds.append(log_odds(logits, batch))
    divergences = []
    for logits, place in _edited(parts, benign):
        batch = benign.batches[place]
        own = slice(0, batch.size)
        with torch.inference_mode():
            base = benign.runs[place].readout_logits()
        divergences.append(full_sequence_kl(base[own], logits[own], batch.continuation_mask[own])[0])
    return Tried(
        plan=plan,
        harmful_outcome=bootstrap_estimate(torch.cat(lean).double().cpu(), seed=seed),
        lean_to_refusal=float((torch.cat(odds) < 0).float().mean()),
        benign_kl=bootstrap_estimate(torch.cat(divergences).double().cpu(), seed=seed),
    )


@torch.inference_mode()
def _edited(parts: Parts, kept: Kept) -> Iterator[tuple[Tensor, int]]:
    """The read-out logits [2B, C, V] of each run under all `parts`, and its place."""
    active = [kept.where(trigger).active for _, trigger in parts]
    for place, run in enumerate(kept.runs):
        by_layer: dict[int, list[Transform]] = {}
        for (edits, _), where in zip(parts, active, strict=True):
            for layer, transform in edit_transforms(edits, run.residual.device, where[place]).items():
                by_layer.setdefault(layer, []).append(transform)
        with transformed(run.model, {layer: _one_after_other(several) for layer, several in by_layer.items()}):
            logits = run.readout_logits()
        yield logits, place


def _one_after_other(transforms: Sequence[Transform]) -> Transform:
    return lambda h: reduce(lambda value, transform: transform(value), transforms, h)


STEPS = 3
Floats = NDArray[np.float64]


def chosen_requests(batches: Sequence[Batch], wanted: NDArray[np.bool_]) -> list[Batch]:
    """The batches with only those requests that `wanted` [requests in all batches] marks; empty ones are left out."""
    found, start = [], 0
    for batch in batches:
        places = torch.from_numpy(wanted[start : start + batch.size].nonzero()[0]).to(batch.input_ids.device)
        start += batch.size
        if len(places):
            rows = torch.cat([places, batch.size + places])  # [2 chosen]
            names = ("input_ids", "attention_mask", "position_ids", "continuation_mask")
            found.append(replace(batch, **{name: getattr(batch, name)[rows] for name in names}))
    return found


def own_gates(subject: Subject, labels: NDArray[np.int64]) -> list[tuple[Member, ...]]:
    """The gate that grows on each half's calibration requests alone."""
    late, trigger, settings = subject.late, subject.gate.trigger, subject.settings.selection
    if trigger is not None:
        settings = replace(settings, benign_weight=0.0)
    benign = late.calibration["benign"].where(trigger, limit=SEARCHED)
    batches = late.calibration["harmful"].batches
    gates = []
    for label in range(int(labels.max()) + 1):
        wanted = np.zeros(sum(batch.size for batch in batches), dtype=bool)
        wanted[: len(labels)] = labels == label
        kept = keep(subject.model, chosen_requests(batches, wanted), late.layers[0])
        grown = grow_gate(kept.where(trigger), benign, late.activations.reference_mean, settings)
        gates.append(tuple(member for member in grown if member.carries == "compliance"))
    return gates


def parted(harmful: Requests, members: Sequence[Member], subject: Subject, labels: Labels) -> list[tuple[Member, ...]]:
    """The part of the gate that each half has: of two halves of a wording, the one on which a neuron acts more.

    How it acts is the mean of its linear effects first in and last in, so that redundant neurons count. `labels` are of
    `harmful`.
    """
    values = subject.late.activations.reference_mean
    empty = Masks(values)
    ends = [linear_effects(harmful, masks, first_odds) for masks in (empty, empty.with_members(list(members)))]
    first, last = (torch.stack([end[member.layer][:, member.neuron] for member in members]) for end in ends)
    return split_between_halves(((first + last) / 2).double().cpu().numpy(), members, labels)


def split_between_halves(effects: Floats, members: Sequence[Member], labels: Labels) -> list[tuple[Member, ...]]:
    """Each neuron to one of the two halves of each wording, by `effects` [members, requests]."""
    parts: list[tuple[Member, ...]] = []
    for first in range(0, int(labels.max()) + 1, 2):
        to_second = effects[:, labels == first + 1].mean(1) > effects[:, labels == first].mean(1)
        parts += [
            tuple(member for member, goes in zip(members, to_second == half, strict=True) if goes)
            for half in (False, True)
        ]
    return parts


def drops(harmful: Requests, gates: Sequence[Sequence[Member]], subject: Subject) -> Floats:
    """What each gate takes from the log-odds of compliance's first token, [gates, requests] nats."""
    empty = Masks(subject.late.activations.reference_mean)
    base = joint_outcomes(harmful, empty, first_odds)
    taken = [base - joint_outcomes(harmful, empty.with_members(list(gate)), first_odds) for gate in gates]
    return torch.stack(taken).double().cpu().numpy()


def over_halves(values: Floats, labels: Labels, seed: int) -> Estimate:
    """The mean of `values` [requests] over halves [requests] that count alike, each of two requests at least.

    Requests are resampled, halves are not: what tells one half from another is no noise. So the interval is that of the
    requests' deviations from their half's mean (Davison and Hinkley 1997, on strata).
    """
    counts = np.bincount(labels)
    means = np.bincount(labels, weights=values) / counts
    deviations = (values - means[labels]) * np.sqrt(counts / (counts - 1))[labels]
    weights = len(labels) / len(counts) / counts
    return bootstrap_estimate(means.mean() + weights[labels] * deviations, seed=seed)


def compare(
    taken: Floats, whole: Floats, labels: Labels, sizes: Sequence[tuple[int, int]], seed: int
) -> dict[str, object]:
    """Each part on its own requests and on the other half's: those fields of `Shards`, by name.

    `taken` [halves, requests] is what each part takes, `whole` [requests] what the gate does, `labels` [requests] the
    half of each request or -1, `sizes` the calibration requests and neurons of each half.
    """
    inside = labels >= 0
    taken, whole, labels = taken[:, inside], whole[inside], labels[inside]
    places = np.arange(len(labels))
    own, other = taken[labels, places], taken[labels ^ 1, places]  # of two halves 2k and 2k + 1
    clusters, transfers = [], []
    for target, (requests, neurons) in enumerate(sizes):
        here = labels == target
        clusters.append(
            Cluster(requests=requests, neurons=neurons, own_effect=bootstrap_estimate(own[here], seed=seed))
        )
        transfers.append(
            Transfer(
                source=target ^ 1,
                target=target,
                effect=bootstrap_estimate(other[here], seed=seed),
                beyond_half=bootstrap_estimate(other[here] - own[here] / 2, seed=seed),
            )
        )
    return {
        "clusters": tuple(clusters),
        "transfers": tuple(transfers),
        "shared": over_halves(other - own / 2, labels, seed),
        "carried": over_halves(own - whole / 2, labels, seed),
    }


def measure(subject: Subject, advance: Advance) -> Shards:
    """Halve the requests, part the gate between them, try each part on both, and try plans where one gate is not said
    to serve all.
    """
    late, seed, trigger = subject.late, subject.settings.seed, subject.gate.trigger
    harmful, fresh = late.calibration["harmful"].where(None, limit=SEARCHED), late.validation["harmful"].where(None)
    signatures = Signatures.of(harmful, late.activations.reference_mean, seed)
    points, wordings = signatures(harmful), refusal_wordings([run.batch for run in harmful.runs])
    found = cluster(beyond_wordings(points, wordings), seed)
    none = Shards(count=found.count, silhouette=found.silhouette, p_value=found.p_value, clusters=(), transfers=())
    labels, fresh_labels = halve(
        points, wordings, signatures(fresh), refusal_wordings(late.validation["harmful"].batches), seed
    )
    advance(1)
    members = [member for member in subject.gate.members if member.carries == "compliance"]
    if not members or labels.max() < 0:
        advance(STEPS - 1)
        return none
    parts = parted(late.calibration["harmful"].where(trigger, limit=SEARCHED), members, subject, labels)
    taken = drops(late.validation["harmful"].where(trigger), [*parts, members], subject)
    sizes = [(int((labels == half).sum()), len(part)) for half, part in enumerate(parts)]
    made = none.model_copy(update=compare(taken[:-1], taken[-1], fresh_labels, sizes, seed))
    advance(1)
    if all(one.said != "yes" for one in made.claims):
        tried, better = try_plans(subject, own_gates(subject, labels), labels, fresh_labels)
        made = made.model_copy(update={"tried": tried, "better": better})
    advance(1)
    return made


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


ANALYSIS = Analysis(
    order=60,
    name="shards",
    title="Shards",
    kind=Shards,
    claims=("one_gate",),
    measure=measure,
    describe=describe,
    total=lambda _: STEPS,
    needs_gate=True,
)
