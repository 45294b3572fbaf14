"""Fit the trigger: a linear read-out of an early residual stream that tells harmful requests, token by token.

A gate in late layers is often a gate of compliance as such; a trigger confines its edit to requests that the model
itself represents as harmful. The direction is a logistic regression of tokens of harmful requests against all tokens
of benign ones: the last prompt token, at which the answer is decided, and as many response tokens as still read out
well. Its threshold is a split-conformal quantile of each benign request's *highest* score, so the guarantee is per
request, not per token: for benign requests exchangeable with the calibration ones, P(any token triggers) <= alpha
(Vovk et al. 2005; Angelopoulos and Bates 2023). It trades power for that: one odd benign token anywhere costs
threshold everywhere.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from calibration.prompts.sequences import Batch
from calibration.runs.layer_calls import calls
from calibration.runs.shelf import Shelf, Shelved
from guard.errors import NeuronGuardError
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import Trigger

REACHES = (0, 2)


@dataclass(frozen=True)
class TokenStates:
    """Residual streams of some rows entering one layer.

    `states` [N, T, d_model]; `mask` bool [N, T], the real tokens; `decisive` int64 [N], the column of each row's last
    prompt token.
    """

    states: Tensor
    mask: Tensor
    decisive: Tensor

    def from_decisive(self, reach: int) -> Tensor:
        """Bool [N, T]: the last prompt token and up to `reach` response tokens after it."""
        distance = torch.arange(self.mask.shape[1])[None] - self.decisive[:, None]  # [N, T]
        return self.mask & (distance >= 0) & (distance <= reach)

    def scores(self, direction: Tensor) -> Tensor:
        """Score of each token, [N, T], -inf on padding."""
        return (self.states.float() @ direction).masked_fill(~self.mask, -math.inf)

    def highest(self, direction: Tensor) -> Tensor:
        """Each row's highest score, [N]."""
        return self.scores(direction).amax(dim=1)

    def half(self, which: int) -> "TokenStates":
        """Every second row, from row `which` (0 or 1) on."""
        return TokenStates(self.states[which::2], self.mask[which::2], self.decisive[which::2])


class ShelvedStates(Mapping[int, TokenStates]):
    """States by layer, of which one layer's are put together at a time.

    `parts[layer]` are tensors [rows, T, width] on a shelf; `mask` and `decisive` are those of `TokenStates`, for all
    rows.
    """

    def __init__(self, parts: Mapping[int, Sequence[Shelved]], mask: Tensor, decisive: Tensor) -> None:
        self._parts, self.mask, self.decisive = parts, mask, decisive

    def __getitem__(self, layer: int) -> TokenStates:
        return TokenStates(torch.cat([part.tensor() for part in self._parts[layer]]), self.mask, self.decisive)

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@torch.inference_mode()
def entering_states(
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Sequence[int],
    *,
    compliance_only: bool = True,
    shelf: Shelf | None = None,
) -> ShelvedStates:
    """Residual streams that enter `layers`, for the rows that carry the compliance continuation, or for all rows.

    They are kept on `shelf`; without one in memory.
    """
    decoder_layers = architecture_of(model).decoder_layers(model)
    kept = shelf or Shelf()
    collected: dict[int, list[Shelved]] = {layer: [] for layer in layers}
    width = max(batch.input_ids.shape[1] for batch in batches)
    masks, decisive = [], []
    for batch in batches:
        rows, padding = batch.size if compliance_only else 2 * batch.size, width - batch.input_ids.shape[1]
        masks.append(nn.functional.pad(batch.attention_mask[:rows].bool(), (0, padding)).cpu())
        decisive.append(torch.full((rows,), batch.prompt_width - 1))

        def keep(layer: int, rows: int = rows, padding: int = padding) -> Callable[[Tensor, dict[str, Any]], None]:
            def seen(entering: Tensor, _: dict[str, Any]) -> None:
                collected[layer].append(kept.put(nn.functional.pad(entering[:rows], (0, 0, 0, padding)).cpu()))

            return seen

        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(calls(decoder_layers[layer], keep(layer)))
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=1,
            )
    return ShelvedStates(collected, torch.cat(masks), torch.cat(decisive))


def fit_direction(harmful: TokenStates, benign: TokenStates, reach: int) -> Tensor:
    """The logistic direction [d_model], float32, between the harmful tokens within `reach` and all benign ones."""
    return logistic_direction(harmful.states[harmful.from_decisive(reach)], benign.states[benign.mask])


def logistic_direction(positive: Tensor, negative: Tensor) -> Tensor:
    """The logistic direction [d_model], float32, that tells points [n, d_model] of one kind from those of another.

    Standardisation is folded in and the intercept left to the threshold.
    """
    features = torch.cat([positive, negative]).double().numpy()
    scaler = StandardScaler().fit(features)
    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=200, solver="newton-cholesky")
    model.fit(scaler.transform(features), labels)
    return torch.from_numpy((model.coef_[0] / scaler.scale_).astype(np.float32))


def conformal_threshold(highest: Tensor, alpha: float) -> tuple[float, float]:
    """Threshold on a request's highest score, and the rate that it guarantees, from `highest` [n] of benign requests.

    The ceil((n + 1)(1 - alpha))-th smallest; with fewer than 1/alpha - 1 requests the largest, which guarantees 1/(n +
    1).
    """
    n = highest.numel()
    rank = min(n, math.ceil((n + 1) * (1 - alpha)))
    return float(highest.sort().values[rank - 1]), max(alpha, 1 / (n + 1))


def activity(harmful: TokenStates, direction: Tensor, threshold: float, reach: int) -> float:
    """Share of the harmful rows' tokens within `reach` on which the trigger is active."""
    meant = harmful.from_decisive(reach)
    return float(((harmful.scores(direction) > threshold) & meant).sum() / meant.sum())


@dataclass(frozen=True)
class FittedTrigger:
    """A trigger, and the shares of fresh harmful requests on which it is active: at the last prompt token, and over
    the first response tokens too.
    """

    trigger: Trigger
    at_decision: float
    over_response: float


def _cross_fitted(harmful: TokenStates, benign: TokenStates, reach: int, alpha: float) -> tuple[float, float]:
    """What a read-out fitted and set on one half of the requests is worth on the other, both ways, averaged.

    The shares of harmful requests on which it is active: at the last prompt token, and within the widest reach.
    """
    shares = []
    for fitting, testing in ((0, 1), (1, 0)):
        direction = fit_direction(harmful.half(fitting), benign.half(fitting), reach)
        threshold, _ = conformal_threshold(benign.half(testing).highest(direction), alpha)
        shares.append([activity(harmful.half(testing), direction, threshold, r) for r in (0, max(REACHES))])
    at_decision, over_response = np.mean(shares, axis=0)
    return round(float(at_decision), 2), float(over_response)


def fit_trigger(
    harmful: Mapping[int, TokenStates],
    benign: Mapping[int, TokenStates],
    fresh_harmful: Mapping[int, TokenStates],
    fresh_benign: Mapping[int, TokenStates],
    *,
    alpha: float,
) -> FittedTrigger:
    """The trigger that is active on most harmful requests at its conformal threshold, over layers and reaches.

    Layer and reach are chosen by cross-fitting and the direction is fitted on `harmful` and `benign`; the threshold is
    set on `fresh_benign`, which nothing else has seen: that is what the guarantee needs. Raises NeuronGuardError
    without any layer.
    """
    choices = list(product(sorted(harmful), REACHES))
    if not choices:
        raise NeuronGuardError("a trigger needs a layer before the first guarded one, and there is none.")
    layer, reach = max(choices, key=lambda c: _cross_fitted(harmful[c[0]], benign[c[0]], c[1], alpha))
    direction = fit_direction(harmful[layer], benign[layer], reach)
    highest = fresh_benign[layer].highest(direction)
    threshold, guaranteed = conformal_threshold(highest, alpha)
    trigger = Trigger(
        layer=layer,
        threshold=threshold,
        direction=tuple(direction.tolist()),
        false_trigger_rate=guaranteed,
        calibration_size=highest.numel(),
    )
    return FittedTrigger(
        trigger,
        activity(fresh_harmful[layer], direction, trigger.threshold, 0),
        activity(fresh_harmful[layer], direction, trigger.threshold, max(REACHES)),
    )
