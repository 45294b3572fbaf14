"""How well scores tell two kinds of requests apart, with an interval that holds at a perfect score too.

The area under the ROC curve is the chance that a harmful request scores above a benign one. Resampling a perfect
separation only ever gives a perfect separation, so the interval is Newcombe's score interval instead, which is to the
area what Wilson's is to a rate; it assumes nothing of the scores but is somewhat wide for scores that are normal.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from calibration.effects.statistics import CONFIDENCE
from guard.spec.measures import Estimate

EDGE = 1e-9


def auroc_estimate(positive: ArrayLike, negative: ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate:
    """P(a score of `positive` [m] is above one of `negative` [k]), ties counted half; `n` is m + k.

    The interval is method 5 of Newcombe (2006): the areas whose Hanley-McNeil variance, both class sizes taken at their
    mean in its correction, puts the area found within z standard errors. Raises ValueError without scores of each kind.
    """
    above, below = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if above.ndim != 1 or below.ndim != 1 or not above.size or not below.size:
        raise ValueError(f"scores of each kind are needed in one dimension, got shapes {above.shape} and {below.shape}")
    labels = np.concatenate([np.ones(above.size), np.zeros(below.size)])
    value = float(roc_auc_score(labels, np.concatenate([above, below])))
    z, others = float(norm.isf((1 - confidence) / 2)), (above.size + below.size) / 2 - 1

    def excess(area: float) -> float:
        correction = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
        variance = area * (1 - area) * correction / (above.size * below.size)
        return abs(area - value) - z * math.sqrt(variance)

    inside = min(max(value, EDGE), 1 - EDGE)  # at 0 and 1 the variance is 0: a root that says nothing
    low = brentq(excess, EDGE, inside) if excess(EDGE) > 0 else 0.0
    high = brentq(excess, inside, 1 - EDGE) if excess(1 - EDGE) > 0 else 1.0
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=above.size + below.size)
