"""Concentration: whether few late neurons carry the effect, or whether it is spread over all of them.

Neurons are moved, at every token, to their mean on reference requests. Joint effects are what the log-probability of
the refusal gains by it on harmful requests (half of Y), single ones and the overlap what Y loses, in nats.
"""

from guard.spec.claim import Claim
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


class Concentration(Growing):
    """How the effect of the late neurons is spread over them.

    `carriers` is the size of the best set that takes most, `joint` its effect, `everything` that of all late neurons.
    `participation` is the participation ratio of the exact effects of the `screened` neurons, each the mean of first in
    and last in: how many neurons of equal effect would be as concentrated. `circuit` is None without a gate, `needed`
    empty where there is no joint effect to carry.
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
    claims: tuple[Claim, ...]
    circuit: Circuit | None = None
