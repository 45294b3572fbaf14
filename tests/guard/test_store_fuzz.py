"""Thousands of broken spec files, none of which gets past `EditSpec.load` or out of it as anything but a SpecError."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.errors import SpecError
from guard.spec.edit_spec import EditSpec
from tests.guard.breaking import assembled, split
from tests.guard.specs import EVIDENCE, PROVENANCE, REFUTED, evidence_with, small_spec

FILES = 3_000
SPECS = (
    small_spec(),
    small_spec(trigger=None),
    small_spec(layers=(), trigger=None, evidence=evidence_with(verdict=REFUTED)),
    small_spec(evidence=EVIDENCE.model_copy(update={"mediators": EVIDENCE.mediators * 3}), provenance=PROVENANCE),
)
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf")),
    *("", "NaN", "F32", "I32", "BF16", "effective", "\ud800", "\x00", "a" * 64, "layers.2.neurons", "__metadata__"),
    *([], {}, [0, 4], [2, 3], [[[]]], {"neuron_guard": "{}"}, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place inside a JSON value: its container and its key or index."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *places(value[key])]
    return found


def change_json(draw: st.DrawFn, value: Any) -> None:
    """Replaces, removes, renames or doubles something at a random place of `value`."""
    every = places(value)
    container, key = every[draw(st.integers(0, len(every) - 1))]
    action = draw(st.sampled_from(["replace", "remove", "swap", "rename"]))
    if action == "replace":
        container[key] = draw(st.sampled_from(STRANGE))
    elif action == "remove":
        del container[key]
    elif action == "swap":
        other, place = every[draw(st.integers(0, len(every) - 1))]
        container[key] = json.loads(json.dumps(other[place]))
    elif isinstance(container, dict):
        container[draw(st.sampled_from(["", "low", "layers.3.lower", "trigger.direction", "é"]))] = container.pop(key)
    else:
        container.insert(key, container[key])


def flip(draw: st.DrawFn, contents: bytes) -> bytes:
    changed = bytearray(contents)
    for place in draw(st.lists(st.integers(0, len(contents) - 1), min_size=1, max_size=4)):
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)


def cut(draw: st.DrawFn, contents: bytes) -> bytes:
    return contents[: draw(st.integers(0, len(contents) - 1))]


def splice(draw: st.DrawFn, contents: bytes) -> bytes:
    other = draw(st.sampled_from(BASES))
    start, end = draw(st.integers(0, len(contents))), draw(st.integers(0, len(other)))
    return contents[:start] + other[end:]


def other_data(draw: st.DrawFn, contents: bytes) -> bytes:
    """Random values in the tensors, the header as it was."""
    header, data = split(contents)
    return assembled(json.dumps(header), draw(st.binary(min_size=len(data), max_size=len(data))))


def other_header(draw: st.DrawFn, contents: bytes) -> bytes:
    header, data = split(contents)
    change_json(draw, header)
    return assembled(json.dumps(header), data)


def other_document(draw: st.DrawFn, contents: bytes) -> bytes:
    header, data = split(contents)
    document = json.loads(header["__metadata__"]["neuron_guard"])
    for _ in range(draw(st.integers(1, 2))):
        change_json(draw, document)
    header["__metadata__"]["neuron_guard"] = json.dumps(document)
    return assembled(json.dumps(header), data)


def other_text(draw: st.DrawFn, contents: bytes) -> bytes:
    """A piece of the header again elsewhere in it, the length put right: doubled keys, stray brackets, half escapes."""
    length = int.from_bytes(contents[:8], "little")
    text = contents[8 : 8 + length]
    start, size, to = draw(st.tuples(st.integers(0, length), st.integers(1, 40), st.integers(0, length)))
    return assembled(text[:to] + text[start : start + size] + text[to:], contents[8 + length :])


MUTATIONS = (flip, cut, splice, other_data, other_header, other_document, other_text)
BASES: list[bytes] = []


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    return draw(st.sampled_from(MUTATIONS))(draw, draw(st.sampled_from(BASES)))


def save_bases(folder: Path) -> None:
    BASES.clear()
    for spec in SPECS:
        spec.save(folder / "base")
        BASES.append((folder / "base").read_bytes())


@pytest.mark.fuzz
def test_a_broken_file_is_refused_or_is_a_valid_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk would take longer than the test
    save_bases(tmp_path)
    outcomes = {"refused": 0, "accepted": 0}
    path = tmp_path / "file"

    @given(contents=broken_files())
    @settings(
        max_examples=FILES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    def check(contents: bytes) -> None:
        path.unlink(missing_ok=True)  # a new file each time: to empty one waits for the disk
        path.write_bytes(contents)
        try:
            loaded = EditSpec.load(path)
        except SpecError as error:
            message = str(error)
            assert message.startswith(f"{path} is not a valid edit spec: ")
            assert message.endswith(".")
            assert message.isprintable()
            assert len(message) < len(str(path)) + 300
            outcomes["refused"] += 1
        else:
            assert EditSpec.model_validate_json(loaded.model_dump_json()) == loaded
            loaded.save(path)
            assert EditSpec.load(path) == loaded
            outcomes["accepted"] += 1

    check()
    assert sum(outcomes.values()) >= FILES
    assert outcomes["refused"] > FILES / 2
    assert outcomes["accepted"] > 0, "no mutation was harmless: this no longer tests what is accepted"
