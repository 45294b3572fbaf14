"""Intervals of what is made of several means over the same contrast pairs: ratios, and differences of ratios.

`statistics.py` has intervals of a mean. A ratio of means is steadier than a mean of ratios, whose denominators may
come close to 0, but is no mean over pairs; so the pairs are resampled, and the ratio is taken of each resample's means.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from calibration.effects.statistics import CONFIDENCE, RESAMPLES, Floats
from guard.spec.measures import Estimate

SMALLEST = 1e-12


def estimate_of_means(columns: ArrayLike, statistic: Callable[[Floats], Floats], *, seed: int) -> Estimate:
    """`statistic` ([resamples, k] -> [resamples]) of the means of `columns` [pairs, k], with its 95 % interval.

    Percentiles of the paired bootstrap (Efron 1979), pairs resampled whole. Raises ValueError for fewer than two pairs
    or values that are not finite.
    """
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 2 or not np.isfinite(table).all():
        raise ValueError(f"finite values of at least two pairs are needed, got shape {table.shape}")
    pairs = table.shape[0]
    random = np.random.default_rng(seed)
    weights = random.multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES) / pairs  # [resamples, pairs]
    value = float(statistic(table.mean(axis=0)[None])[0])
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(statistic(weights @ table), [tail, 100 - tail])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=pairs)


def ratio(means: Floats) -> Floats:
    """First column over second, [resamples]; 0 where the second is 0, since what has no effect has no ratio."""
    above, below = means[..., 0], means[..., 1]
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=np.abs(below) > SMALLEST))


def ratio_difference(means: Floats) -> Floats:
    """First column over second less third over fourth, [resamples]."""
    return np.asarray(ratio(means[..., :2]) - ratio(means[..., 2:]))
