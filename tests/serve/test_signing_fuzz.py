"""Thousands of altered spec files: none passes for the signed one, and none for a spec that it is not."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.errors import SpecError
from guard.spec.edit_spec import EditSpec
from serve.signing import SignatureError, require_signature, signature_path
from tests.guard.breaking import assembled, split
from tests.guard.specs import small_spec
from tests.serve.signature_attacks import fill

FILES, SIGNATURES = 3_000, 1_000
STRANGE: list[Any] = [None, True, 0, -1, 1, 2**31, 0.5, -0.0, 1e300, "", "effective", "a" * 64, [], {}, [2], [[0]]]

Mutation = Callable[[random.Random, bytes], bytes]


def one_byte(chance: random.Random, contents: bytes) -> bytes:
    place = chance.randrange(len(contents))
    changed = (contents[place] + chance.randrange(1, 256)) % 256
    return contents[:place] + bytes([changed]) + contents[place + 1 :]


def one_bit(chance: random.Random, contents: bytes) -> bytes:
    place = chance.randrange(len(contents))
    return contents[:place] + bytes([contents[place] ^ 1 << chance.randrange(8)]) + contents[place + 1 :]


def cut(chance: random.Random, contents: bytes) -> bytes:
    return contents[: chance.randrange(len(contents))]


def longer(chance: random.Random, contents: bytes) -> bytes:
    return contents + chance.randbytes(chance.randrange(1, 9))


def piece_moved(chance: random.Random, contents: bytes) -> bytes:
    start, size, to = chance.randrange(len(contents)), chance.randrange(1, 40), chance.randrange(len(contents))
    return contents[:to] + contents[start : start + size] + contents[to:]


def other_values(chance: random.Random, contents: bytes) -> bytes:
    """One value of a tensor replaced: what an attacker wants, and what a parser cannot see."""
    header, data = split(contents)
    place = 4 * chance.randrange(len(data) // 4)
    return assembled(json.dumps(header), data[:place] + chance.randbytes(4) + data[place + 4 :])


def places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *places(value[key])]
    return found


def other_document(chance: random.Random, contents: bytes) -> bytes:
    """Something in the document replaced, removed or copied from elsewhere in it: mostly still a tidy file."""
    header, data = split(contents)
    document = json.loads(header["__metadata__"]["neuron_guard"])
    every = places(document)
    (container, key), (other, place) = chance.choice(every), chance.choice(every)
    action = chance.randrange(4)
    if action == 0:
        del container[key]
    elif isinstance(container[key], str | int | float) and action == 1:
        container[key] = str(container[key]) + "x" if isinstance(container[key], str) else container[key] / 2 + 1
    else:
        container[key] = chance.choice(STRANGE) if action == 2 else json.loads(json.dumps(other[place]))
    header["__metadata__"]["neuron_guard"] = json.dumps(document)
    return assembled(json.dumps(header), data)


MUTATIONS: tuple[Mutation, ...] = (one_byte, one_bit, cut, longer, piece_moved, other_values, other_document)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk would take longer than the test
    fill(tmp_path)
    return tmp_path


@pytest.mark.fuzz
def test_no_altered_spec_file_is_accepted_as_signed_or_loads_as_the_spec_that_it_was(folder: Path) -> None:
    chance, original, spec = random.Random(0), (folder / "spec").read_bytes(), small_spec()
    refused = changed = same = 0
    signature_path(folder / "new").write_bytes((folder / "spec.sig").read_bytes())
    path = folder / "new"
    for number in range(FILES):
        altered = MUTATIONS[number % len(MUTATIONS)](chance, original)
        if altered == original:
            altered += b"\0"
        path.unlink(missing_ok=True)
        path.write_bytes(altered)
        with pytest.raises(SignatureError, match="is not the file that was signed"):
            require_signature(path, folder / "key.pub")
        try:
            loaded = EditSpec.load(path)
        except SpecError:
            refused += 1
        else:
            assert (loaded.digest == spec.digest) == (loaded == spec)
            same += loaded == spec
            changed += loaded != spec
    assert refused + changed + same == FILES
    assert refused > FILES / 2
    assert changed > 0, "no mutation gave another valid spec: nothing shows that signatures are needed"
    assert same > 0, "no mutation gave the same spec in other bytes"


@pytest.mark.fuzz
def test_no_altered_signature_file_is_accepted_unless_it_says_the_same(folder: Path) -> None:
    chance, path = random.Random(1), folder / "spec.sig"
    original = path.read_bytes()
    said = json.loads(original)
    accepted = 0
    for number in range(SIGNATURES):
        altered = MUTATIONS[:5][number % 5](chance, original)
        path.unlink()
        path.write_bytes(altered)
        try:
            assert require_signature(folder / "spec", folder / "key.pub") == small_spec()
        except SignatureError:
            continue
        accepted += 1
        assert json.loads(path.read_bytes()) == said
    assert accepted < SIGNATURES / 10
