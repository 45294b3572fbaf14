"""Do kinds of harm share one gate? Requests are halved, and the gate falls into what serves one half or the other.

Within each wording of refusal (`halves.py` says why) the gate's neurons are parted: each goes to the half on which it
acts more. If kinds of harm have gates of their own, each part takes compliance from its half and leaves the other as it
is, a double dissociation (Teuber 1955); if they share one, a part does to both what it does to either. Halves and parts
are found on calibration requests and tried on validation requests. No gate is grown on few requests to be tried on
others: a small one may fail there for wording alone, and one that grew large takes in the neurons of its neighbours.

Where one gate does not serve all, three plans are tried on held-out requests. It costs two signatures of every request
(a forward and a backward pass over the late layers, and the exact effects of a few neurons), the linear effects of the
gate's neurons with none of it edited and with all of it, and a forward pass for each part; where plans are tried, one
growth of a gate per half. All of it grows in proportion to requests and late layers.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.analyses.clusters import cluster
from calibration.analyses.halves import Labels, beyond_wordings, halve, refusal_wordings
from calibration.analyses.shard_plans import try_plans
from calibration.analyses.signatures import Signatures, first_odds
from calibration.analyses.subject import Subject
from calibration.effects.statistics import bootstrap_estimate
from calibration.prompts.sequences import Batch
from calibration.runs.stage import keep
from calibration.search.findings import Advance
from calibration.search.gate import SEARCHED
from calibration.search.selection import Masks, Member, Requests, grow_gate, joint_outcomes, linear_effects
from guard.analyses.shards import Cluster, Shards, Transfer
from guard.spec.measures import Estimate

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
