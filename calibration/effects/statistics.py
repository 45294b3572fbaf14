"""Intervals, p-values and false-discovery control.

scipy and statsmodels where they have it; what is written here is what they lack: sign flips for thousands of neurons in
one matrix product, and an exact paired test that a rate fell by more than a margin. All randomness is seeded.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from guard.spec.edit_spec import Estimate

CONFIDENCE = 0.95
RESAMPLES = 2_000
FLIPS = 10_000
FLIPS_AT_ONCE = 1_000
NUISANCE_POINTS = 501

Alternative = Literal["two-sided", "greater", "less"]
Floats = NDArray[np.float64]


def bootstrap_estimate(values: ArrayLike, *, seed: int, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of `values` [n] and its bootstrap interval; n is the number of prompt pairs."""
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise ValueError(f"values must have one dimension, not {column.ndim}")
    return bootstrap_estimates(column[:, None], seed=seed, confidence=confidence)[0]


def bootstrap_estimates(values: ArrayLike, *, seed: int, confidence: float = CONFIDENCE) -> tuple[Estimate, ...]:
    """The mean over pairs of each column of `values` [n, columns], with BCa bootstrap intervals (Efron 1987).

    Pairs are resampled whole, so columns stay paired. A column that is constant, up to rounding, has no spread to
    resample: its interval is its value. Raises ValueError for fewer than two pairs or values that are not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 2:
        raise ValueError(f"at least two pairs are needed for an interval, got values of shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("values must be finite")
    means, spread = table.mean(axis=0), np.ptp(table, axis=0)
    low, high = np.zeros_like(means), np.zeros_like(means)  # in units of the spread, from the mean
    varies = spread > 1e-12 * np.abs(table).max(axis=0)
    if varies.any():
        scaled = (table[:, varies] - means[varies]) / spread[varies]  # cubes of tiny values would underflow
        interval = stats.bootstrap(
            (scaled,),
            np.mean,
            axis=0,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, 4_000_000 // scaled.size),
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low[varies], high[varies] = interval.low, interval.high
    low, high = means + np.minimum(low, 0) * spread, means + np.maximum(high, 0) * spread
    return tuple(
        Estimate(value=float(mean), low=float(below), high=float(above), n=table.shape[0])
        for mean, below, above in zip(means, low, high, strict=True)
    )


def selectivity_estimates(wanted: ArrayLike, unwanted: ArrayLike, *, seed: int) -> tuple[Estimate, ...]:
    """(a - b) / (a + b) of each column, with percentile bootstrap intervals (Efron 1979): a selectivity index.

    a is the mean of the column in `wanted` [n, columns], 0 where that is negative, b the mean size of the same column
    in `unwanted` [m, columns]. In [-1, 1]: 1 where b is 0, 0 where both are. The two samples are resampled each by
    itself. Raises ValueError for fewer than two rows in either.
    """
    first, second = np.asarray(wanted, dtype=np.float64), np.abs(np.asarray(unwanted, dtype=np.float64))
    if min(len(first), len(second)) < 2:
        raise ValueError(f"at least two requests on each side are needed, got {len(first)} and {len(second)}")
    random = np.random.default_rng(seed)

    def index(a: Floats, b: Floats) -> Floats:
        kept = np.maximum(a, 0.0)
        total = kept + b
        return np.asarray(np.divide(kept - b, total, out=np.zeros_like(total), where=total > 0), dtype=np.float64)

    def means(sample: Floats) -> Floats:
        weights = random.multinomial(len(sample), np.full(len(sample), 1 / len(sample)), size=RESAMPLES)
        return np.asarray(weights @ sample / len(sample), dtype=np.float64)  # [resamples, columns]

    value = index(first.mean(axis=0), second.mean(axis=0))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(index(means(first), means(second)), [tail, 100 - tail], axis=0)
    return tuple(
        Estimate(value=float(middle), low=float(min(below, middle)), high=float(max(above, middle)), n=len(second))
        for middle, below, above in zip(value, low, high, strict=True)
    )


def wilson_estimate(count: float, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """A rate `count / n` with Wilson's score interval (1927), right at 0 and 1 too. Raises ValueError for n < 1.

    `count` may be a sum of shares, each of [0, 1].
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"a rate needs 0 <= count <= n and n >= 1, got {count} of {n}")
    low, high = proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    value = count / n
    return Estimate(value=value, low=min(max(0.0, float(low)), value), high=max(min(1.0, float(high)), value), n=n)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Adjusted p-values of the same shape [k] (Benjamini and Hochberg 1995): those <= q are discoveries at rate q."""
    p = np.asarray(p_values, dtype=np.float64)
    return p if p.size == 0 else np.asarray(stats.false_discovery_control(p, method="bh"), dtype=np.float64)


def sign_flip_p_values(
    differences: ArrayLike, *, seed: int, alternative: Alternative = "two-sided", flips: int = FLIPS
) -> Floats:
    """Permutation p-value of each neuron, [neurons], from paired `differences` [pairs, neurons].

    Hypothesis: the differences of a neuron are symmetric around 0, so the signs of whole pairs are exchangeable; the
    statistic is the mean. With 2^pairs <= flips every assignment is counted, the observed one among them; otherwise
    `flips` random ones are drawn and p = (b + 1) / (flips + 1) (Phipson and Smyth 2010). So p is never 0.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 1:
        raise ValueError(f"differences must be [pairs, neurons] with at least one pair, got shape {table.shape}")
    pairs, neurons = table.shape
    exact = 2**pairs <= flips
    total = 2**pairs if exact else flips
    random = np.random.default_rng(seed)
    observed = _extremeness(table.sum(axis=0), alternative)
    tolerance = 1e-9 * np.abs(table).sum(axis=0)  # ties of sums in another order
    as_extreme = np.zeros(neurons, dtype=np.int64)
    for start in range(0, total, FLIPS_AT_ONCE):
        count = min(FLIPS_AT_ONCE, total - start)
        if exact:
            bits = (np.arange(start, start + count)[:, None] >> np.arange(pairs)) & 1
        else:
            bits = random.integers(0, 2, size=(count, pairs))
        flipped = _extremeness((1.0 - 2.0 * bits) @ table, alternative)  # [count, neurons]
        as_extreme += (flipped >= observed - tolerance).sum(axis=0)
    p = as_extreme / total if exact else (as_extreme + 1) / (total + 1)
    return np.asarray(p, dtype=np.float64)


def _extremeness(sums: Floats, alternative: Alternative) -> Floats:
    return {"two-sided": np.abs(sums), "greater": sums, "less": -sums}[alternative]


def rank_p_value(value: float, null: ArrayLike, *, alternative: Literal["greater", "less"] = "greater") -> float:
    """How often a draw of `null` [n] is at least as extreme as `value`: (b + 1) / (n + 1), so never 0."""
    draws = np.asarray(null, dtype=np.float64).ravel()
    as_extreme = draws >= value if alternative == "greater" else draws <= value
    return float((as_extreme.sum() + 1) / (draws.size + 1))


def rate_drop_p_value(off: ArrayLike, on: ArrayLike, *, margin: float = 0.0) -> float:
    """Exact p-value that a rate fell by more than `margin`; `off` and `on` bool [n] are the same requests, paired.

    Hypothesis to reject: rate(off) - rate(on) <= margin. With margin 0 it is McNemar's exact one-sided test: of the
    requests that changed, as many rose as fell. With a margin it is the unconditional exact test on
    T = falls - rises: the largest P(T >= t) over all rates of rises r, with falls at rate r + margin (Barnard 1945;
    the maximum is taken on a grid of 501 rates). With no fall at all p is 1. Raises ValueError on unequal lengths.
    """
    before, after = np.asarray(off, dtype=bool), np.asarray(on, dtype=bool)
    if before.ndim != 1 or before.shape != after.shape or before.size == 0:
        raise ValueError(f"off and on must be paired, got shapes {before.shape} and {after.shape}")
    if not 0 <= margin < 1:
        raise ValueError(f"the margin must be in [0, 1), got {margin}")
    falls, rises = int((before & ~after).sum()), int((~before & after).sum())
    if falls == 0:
        return 1.0
    if margin == 0:
        return float(stats.binomtest(falls, falls + rises, 0.5, alternative="greater").pvalue)
    n, least = before.size, falls - rises
    rise_rates = np.linspace(0.0, (1 - margin) / 2, NUISANCE_POINTS)[:, None]  # [rates, 1]
    risen = np.arange(n + 1)[None, :]  # [1, n + 1]
    fall_given_no_rise = np.minimum(1.0, (rise_rates + margin) / (1 - rise_rates))
    tails = stats.binom.sf(risen + least - 1, n - risen, fall_given_no_rise)  # P(falls >= least + risen)
    p = (stats.binom.pmf(risen, n, rise_rates) * tails).sum(axis=1).max()
    return float(min(1.0, p))
