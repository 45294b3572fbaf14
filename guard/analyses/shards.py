"""Shards: whether all harmful requests pass one gate, or different kinds of harm have different ones.

Within each wording of refusal, requests are halved by the neurons that their answers hang on, and the gate's neurons
are parted between the halves, each going where it acts more. Effects are what a part, moved to its replacement values,
takes from the log-odds of the first token of compliance, on validation requests, in nats. (In specs that have no
`shared`, clusters are of all requests, each with a gate grown on it, and effects are of the log-probability.)
"""

from typing import Literal

from guard.spec.claim import Claim, Ground, claim
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


class Shards(Growing):
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
