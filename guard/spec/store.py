"""Spec files on disk: one JSON document and a few small tensors, in the safetensors format.

A file is checked in full before any of it is used, byte range by byte range, so that every bad one ends in one sentence
instead of an error from inside a parser. It is replaced as a whole, so that no reader ever sees half of one. What the
document and the tensors mean is guard/spec/header.py's.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from guard.errors import SpecError
from guard.spec import atomic_files as files
from guard.spec import strict_json

LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_HEADER = 8 * 2**20  # bytes
DOCUMENT_KEY = "neuron_guard"
BYTES_PER_VALUE = {"I32": 4, "F32": 4}
_LENGTH_BYTES = 8


def refusal(path: str | PathLike[str], reason: str) -> SpecError:
    """The error for a file that is not a valid spec."""
    return SpecError(f"{os.fspath(path)} is not a valid edit spec: {reason}.")


def read(path: str | PathLike[str]) -> tuple[str, dict[str, Tensor]]:
    """The JSON document and the tensors [k], int32 or float32, of the file at `path`; SpecError if it is malformed."""
    return decode(read_bytes(path), path)


def read_bytes(path: str | PathLike[str]) -> bytes:
    """The file at `path`, opened once; SpecError if it cannot be read or is larger than a spec may be."""
    with _no_system_error(path, "read"):
        try:
            return files.read(path, LARGEST_FILE, "a spec")
        except files.WrongFileError as error:
            raise refusal(path, str(error)) from error


def write(path: str | PathLike[str], document: str, tensors: Mapping[str, Tensor]) -> None:
    """Put a file at `path` that `read` accepts: all of it, synced to disk, or nothing; SpecError if that fails.

    Through a link, the file that it points to is replaced.
    """
    contents = safetensors.torch.save(dict(tensors), metadata={DOCUMENT_KEY: document})
    decode(contents, path)
    with _no_system_error(path, "written"):
        files.write(path, contents)


def decode(contents: bytes, path: str | PathLike[str]) -> tuple[str, dict[str, Tensor]]:
    """What `read` returns, from the bytes of a file; `path` is for the error alone."""
    try:
        document = _checked_header(contents)
        return document, safetensors.torch.load(contents)
    except (ValueError, SafetensorError) as error:
        raise refusal(path, str(error)) from error


@contextmanager
def _no_system_error(path: str | PathLike[str], done: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"{os.fspath(path)} could not be {done}: {reason}.") from error


def _checked_header(contents: bytes) -> str:
    """The document in the header; ValueError unless the tensors that it lists fill the rest of the file exactly."""
    if len(contents) < _LENGTH_BYTES:
        raise ValueError(f"it ends after {len(contents)} bytes, inside the header's length")
    length = int.from_bytes(contents[:_LENGTH_BYTES], "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header claims {length} bytes, more than the {LARGEST_HEADER} that a spec may have")
    encoded = contents[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if len(encoded) < length:
        raise ValueError(f"it is cut off after {len(encoded)} of the {length} bytes of its header")
    try:
        entries = strict_json.loads(encoded.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise ValueError(f"its header is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    document = _document(entries.pop("__metadata__", None))
    _check_layout(entries, len(contents) - _LENGTH_BYTES - length)
    return document


def _document(metadata: object) -> str:
    if metadata is None:
        raise ValueError("it has no metadata, so it is some other safetensors file")
    document = metadata.get(DOCUMENT_KEY) if isinstance(metadata, dict) and len(metadata) == 1 else None
    if not isinstance(document, str):
        raise ValueError(f"its metadata is not one text named {DOCUMENT_KEY!r}")
    return document


def _check_layout(entries: Mapping[str, object], available: int) -> None:
    """ValueError unless the byte ranges of the tensors `entries` follow one another and make up `available` bytes."""
    ranges = sorted((*_byte_range(name, entry), name) for name, entry in entries.items())
    end = 0
    for start, stop, name in ranges:
        if start != end:
            wrong = "overlap those before them" if start < end else "leave a gap before them"
            raise ValueError(f"the bytes of tensor {strict_json.shown(name)} {wrong}")
        end = stop
    if end > available:
        raise ValueError(f"it is cut off after {available} of the {end} bytes of its tensors")
    if end < available:
        raise ValueError(f"{available - end} bytes follow its last tensor")


def _byte_range(name: str, entry: object) -> tuple[int, int]:
    """Where the tensor begins and ends, in bytes from the end of the header."""
    shown = strict_json.shown(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown} is not described by exactly a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES_PER_VALUE:
        raise ValueError(f"tensor {shown} has a dtype other than {' or '.join(BYTES_PER_VALUE)}")
    if not _are_sizes(shape) or len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"tensor {shown} does not have one dimension of at least one value")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown} does not have two offsets that are whole numbers")
    if offsets[1] - offsets[0] != shape[0] * BYTES_PER_VALUE[dtype]:
        raise ValueError(f"tensor {shown} has {offsets[1] - offsets[0]} bytes, which do not fit its shape and dtype")
    return offsets[0], offsets[1]


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= LARGEST_FILE for value in values)
