"""What every part of a spec is made of: frozen models, finite numbers, estimates with their intervals.

Every number is finite, since a NaN compares as neither good nor bad and would slip through any budget.
"""

import math
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the number is not finite")
    return value + 0.0  # -0.0 becomes 0.0: equal specs have equal digests


Finite = Annotated[float, AfterValidator(_finite)]
Share = Annotated[Finite, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
DEEPEST_JSON = 24  # levels, so that the document that it is part of stays within `strict_json.DEEPEST`
LARGEST_INTEGER = 2**53  # beyond, readers of JSON that know only float64 take one integer for another


def _plain(value: JsonValue, depth: int = 0) -> JsonValue:
    """`value` in the one form that equal values have: whole numbers as integers. ValueError for what JSON cannot hold
    or not every reader can."""
    if depth > DEEPEST_JSON:
        raise ValueError(f"more than {DEEPEST_JSON} levels of nesting")
    if isinstance(value, dict):
        return {_encodable(name): _plain(part, depth + 1) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part, depth + 1) for part in value]
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError("an integer beyond 2^53")
    number = _finite(value)
    return int(number) if number.is_integer() and abs(number) <= LARGEST_INTEGER else number


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair in a text") from error
    return text


Json = Annotated[JsonValue, AfterValidator(_plain)]


class Frozen(BaseModel):
    """A part of a spec: cannot be changed, and knows every field that it is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Growing(Frozen):
    """A part that has gained optional fields. One that is None is not written: older specs keep their digests."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, as_usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = as_usual(self)
        return {name: value for name, value in fields.items() if value is not None}


class Estimate(Frozen):
    """A point estimate, its 95 % interval and the sample size behind it."""

    value: Finite
    low: Finite
    high: Finite
    n: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval's low end {self.low} is above its high end {self.high}")
        return self


class OffOn(Frozen):
    """A rate without and with the guard."""

    off: Estimate
    on: Estimate

    @model_validator(mode="after")
    def _rates(self) -> Self:
        for estimate in (self.off, self.on):
            if not 0.0 <= estimate.value <= 1.0:
                raise ValueError(f"the rate {estimate.value} is not between 0 and 1")
        return self
