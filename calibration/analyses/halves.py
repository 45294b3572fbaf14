"""Requests in two halves by what their answers hang on, within each wording of refusal.

A gate has to talk down the refusal that the model would give, and other neurons do it for "Sorry" than for "No". Left
to themselves clusters follow these wordings, and a gate of one fails on another though one gate serves all. So the
wording of refusal, its first token, is held constant: requests are halved within each, and only such halves compared.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from calibration.analyses.clusters import Points
from calibration.prompts.sequences import Batch

FEWEST = 4  # requests in a half, of either split, below which nothing is said of it
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
    nearer one. A wording is left out where one of its halves has fewer than `FEWEST` of either.
    """
    labels, fresh_labels = np.full(len(points), -1), np.full(len(fresh), -1)
    count = 0
    for wording in np.unique(wordings):
        mine, theirs = wordings == wording, fresh_wordings == wording
        if min(mine.sum(), theirs.sum()) < 2 * FEWEST:
            continue
        fitted = KMeans(2, n_init=4, random_state=seed).fit(points[mine])
        found, assigned = fitted.labels_, fitted.predict(fresh[theirs])
        if min(np.bincount(each, minlength=2).min() for each in (found, assigned)) >= FEWEST:
            labels[mine], fresh_labels[theirs] = count + found, count + assigned
            count += 2
    return labels, fresh_labels
