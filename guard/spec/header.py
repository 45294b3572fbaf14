"""How a spec is laid out in its file: which of it is the JSON document in the header, and which is tensors.

The document holds everything but the contents of the tensors, and lists those tensors itself, so that a header and
tensors of two different files do not pass for one spec.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from guard.spec import store, strict_json
from guard.spec.edit import LayerEdit, ModelIdentity, Positive, Provenance, Threshold, Trigger
from guard.spec.evidence import Evidence
from guard.spec.measures import Count, Frozen, Share

DTYPES: dict[Literal["I32", "F32"], torch.dtype] = {"I32": torch.int32, "F32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
DIRECTION = "trigger.direction"


class TensorEntry(Frozen):
    """One tensor that the file must hold."""

    dtype: Literal["I32", "F32"]
    shape: tuple[Positive]


class TriggerHeader(Frozen):
    """A trigger without its direction."""

    layer: Count
    threshold: Threshold
    false_trigger_rate: Share
    calibration_size: Count


class Header(Frozen):
    """The JSON document in a spec file's header. `layers` are the indices of the guarded layers."""

    schema_version: Literal[1]
    model: ModelIdentity
    layers: tuple[Count, ...]
    trigger: TriggerHeader | None
    provenance: Provenance
    evidence: Evidence
    tensors: dict[str, TensorEntry]


def stored(
    *,
    schema_version: Literal[1],
    model: ModelIdentity,
    layers: Sequence[LayerEdit],
    trigger: Trigger | None,
    provenance: Provenance,
    evidence: Evidence,
) -> tuple[str, dict[str, Tensor]]:
    """The document, in a form that is the same for equal specs, and the tensors int32 or float32 [k] by name."""
    tensors: dict[str, Tensor] = {}
    for edit in layers:
        for name, dtype in _fields(edit.layer).items():
            tensors[name] = torch.tensor(getattr(edit, name.rpartition(".")[2]), dtype=dtype)
    without_direction = None
    if trigger is not None:
        tensors[DIRECTION] = torch.tensor(trigger.direction, dtype=torch.float32)
        without_direction = TriggerHeader(**trigger.model_dump(exclude={"direction"}))
    header = Header(
        schema_version=schema_version,
        model=model,
        layers=tuple(edit.layer for edit in layers),
        trigger=without_direction,
        provenance=provenance,
        evidence=evidence,
        tensors={name: _entry(tensor) for name, tensor in tensors.items()},
    )
    return json.dumps(header.model_dump(), sort_keys=True, allow_nan=False, separators=(",", ":")), tensors


def parts(path: str | PathLike[str], document: str, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The fields of the spec that `stored` took apart; SpecError where document and tensors do not make one.

    `path` is for the error alone.
    """
    try:
        strict_json.loads(document)
    except ValueError as error:
        raise store.refusal(path, f"its document is not valid JSON: {error}") from error
    with refusing(path):
        header = Header.model_validate_json(document, strict=True)
        _check_tensors(header, tensors)
    layers = []
    for layer in header.layers:
        with refusing(path, f"layers.{layer}"):
            fields = {name.rpartition(".")[2]: tuple(tensors[name].tolist()) for name in _fields(layer)}
            layers.append(LayerEdit(layer=layer, **fields))
    with refusing(path, "trigger"):
        trigger = header.trigger and Trigger(
            **header.trigger.model_dump(), direction=tuple(tensors[DIRECTION].tolist())
        )
    kept = {name: getattr(header, name) for name in ("schema_version", "model", "provenance", "evidence")}
    return kept | {"layers": tuple(layers), "trigger": trigger}


@contextmanager
def refusing(path: str | PathLike[str], within: str = "") -> Iterator[None]:
    """What is wrong with a value in the file at `path` becomes a SpecError; `within` is the part that has the value."""
    try:
        yield
    except ValidationError as error:
        raise store.refusal(path, _first(error, within)) from error
    except ValueError as error:
        raise store.refusal(path, str(error)) from error


def _first(error: ValidationError, within: str) -> str:
    """The first thing wrong, where it is, and how many more there are."""
    first = error.errors(include_url=False, include_input=False)[0]
    reason = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if first["type"] != "value_error":
        reason = reason[:1].lower() + reason[1:]
    place = ".".join(map(str, ([within] if within else []) + list(first["loc"])))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if not place and first["type"] == "value_error":
        return reason + more
    return f"at {strict_json.shown(place or 'document')}, {reason}{more}"


def _fields(layer: int) -> dict[str, torch.dtype]:
    """The tensors of one guarded layer."""
    dtypes = {"neurons": torch.int32, "scale": torch.float32, "lower": torch.float32, "upper": torch.float32}
    return {f"layers.{layer}.{field}": dtype for field, dtype in dtypes.items()}


def _entry(tensor: Tensor) -> TensorEntry:
    return TensorEntry(dtype=NAMES[tensor.dtype], shape=(len(tensor),))


def _check_tensors(header: Header, tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless the tensors are those that the header lists, and those that its layers and trigger need."""
    needed = {name: dtype for layer in header.layers for name, dtype in _fields(layer).items()}
    if header.trigger is not None:
        needed[DIRECTION] = torch.float32
    for name, dtype in needed.items():
        if name not in tensors:
            raise ValueError(f"the tensor {name} is missing")
        if tensors[name].dtype != dtype:
            raise ValueError(f"the tensor {name} is {NAMES[tensors[name].dtype]}, not {NAMES[dtype]}")
    for name, tensor in tensors.items():
        if name not in needed:
            raise ValueError(f"the tensor {strict_json.shown(name)} belongs to no guarded layer or trigger")
        if header.tensors.get(name) != _entry(tensor):
            raise ValueError(f"the tensor {name} is not as the document lists it")
    if extra := header.tensors.keys() - tensors.keys():
        raise ValueError(f"the document lists a tensor {strict_json.shown(min(extra))} that the file does not have")
