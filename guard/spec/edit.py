"""What a spec edits, when, and on which model.

Numbers that end up in tensors are rounded to float32 here, on construction, so that what was tried, what is saved and
what is loaded are the same numbers; one that float32 cannot hold is an error rather than an infinity.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Self

import torch
from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from guard.spec.measures import Count, Frozen, Share


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    """Each value as float32 holds it; ValueError where that is NaN, or infinite for a value that is not."""
    rounded: list[float] = (torch.tensor(values, dtype=torch.float64).float() + 0.0).tolist()  # -0.0 becomes 0.0
    for value, result in zip(values, rounded, strict=True):
        if math.isnan(value):
            raise ValueError("a value is NaN")
        if math.isinf(result) and math.isfinite(value):
            raise ValueError(f"the value {value} does not fit in float32")
    return tuple(rounded)


def _float32_finite(values: Sequence[float]) -> tuple[float, ...]:
    rounded = _float32(values)
    if not all(map(math.isfinite, rounded)):
        raise ValueError("a value is not finite")
    return rounded


# JSON has no infinities: pydantic writes and reads them as text.
Bound = Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["-Infinity", "Infinity"]}]})]
Bounds = Annotated[tuple[Bound, ...], AfterValidator(_float32)]
Values = Annotated[tuple[float, ...], AfterValidator(_float32_finite)]
Threshold = Annotated[float, AfterValidator(lambda value: _float32_finite([value])[0])]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(ge=1, lt=2**31)]


class LayerEdit(Frozen):
    """The edit of one layer: h <- clip(scale h, lower, upper) for each of `neurons`, sorted; the four are as long.

    `lower` may be -inf and `upper` inf; both for a neuron that is only scaled.
    """

    layer: Count
    neurons: tuple[Count, ...] = Field(min_length=1)
    scale: Values
    lower: Bounds
    upper: Bounds

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.neurons)
        for name in ("scale", "lower", "upper"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"layer {self.layer} has {count} neurons but {len(getattr(self, name))} of {name}")
        if any(left >= right for left, right in pairwise(self.neurons)):
            raise ValueError(f"the neurons of layer {self.layer} are not sorted, each once")
        for neuron, lower, upper in zip(self.neurons, self.lower, self.upper, strict=True):
            if lower > upper:
                raise ValueError(f"neuron {neuron} of layer {self.layer} has lower bound {lower} above upper {upper}")
            if lower == math.inf or upper == -math.inf:
                raise ValueError(f"neuron {neuron} of layer {self.layer} is bounded to an infinity")
        return self


class Trigger(Frozen):
    """When the edits are active: where the residual stream entering decoder layer `layer`, dotted with `direction`
    [d_model], exceeds `threshold`.

    `false_trigger_rate` is the rate on benign requests that split-conformal calibration on `calibration_size` of them
    guarantees.
    """

    layer: Count
    threshold: Threshold
    direction: Values = Field(min_length=1)
    false_trigger_rate: Share
    calibration_size: Count

    @model_validator(mode="after")
    def _has_direction(self) -> Self:
        if not any(self.direction):
            raise ValueError("the trigger's direction is zero")
        return self


class ModelIdentity(Frozen):
    """The model that a spec belongs to; see guard/spec/fingerprint.py for the digests."""

    model_type: str
    num_hidden_layers: Positive
    d_model: Positive
    d_ff: Positive
    vocab_size: Positive
    tokenizer_digest: Digest | None
    chat_template_digest: Digest | None
    mlp_digest: Digest


class Provenance(Frozen):
    """What made a spec: package versions, the seed, data (role to sha256) and the arguments of the command."""

    versions: dict[str, str]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]
    data: dict[str, Digest]
    arguments: dict[str, str]
