"""Tensors kept for later, in memory up to a limit and in files beyond it.

A calibration keeps activations so that the layers before them need not run again; on a large model they are more than
memory holds. What goes beyond the limit is written to safetensors files, one a tensor, and read back memory-mapped, so
that every number stays as it was, bit for bit. It trades reading from disk for memory, and never a result.
"""

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from guard.errors import NeuronGuardError

NAME = "kept"
Value = TypeVar("Value")


class Shelf:
    """Keeps tensors: `limit` bytes of them in memory (None: all), the others in files of `folder`.

    `in_memory` and `in_files` are the bytes kept now, `peak` the most that were in memory. What nobody asks for any
    more is let go of, its file with it. NeuronGuardError for a limit without a folder.
    """

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        if limit is not None and folder is None:
            raise NeuronGuardError("a limit to what is kept in memory needs a folder for the rest: name one.")
        self.limit, self.folder = limit, folder
        self.in_memory = self.in_files = self.peak = 0

    def put(self, tensor: Tensor) -> "Shelved":
        """Keep `tensor`, detached."""
        tensor = tensor.detach()
        size = tensor.numel() * tensor.element_size()
        if self.folder is None or self.limit is None or self.in_memory + size <= self.limit:
            # a view would hold on to all that it is a view of
            kept = tensor if tensor.untyped_storage().nbytes() == size else tensor.clone()
            self.in_memory += size
            self.peak = max(self.peak, self.in_memory)
            shelved = Shelved(lambda: kept)
            weakref.finalize(shelved, self._let_go, size)
            return shelved
        path, device = self._write(tensor, self.folder), tensor.device
        self.in_files += size
        shelved = Shelved(lambda: _read(path).to(device))
        weakref.finalize(shelved, self._remove, path, size)
        return shelved

    def put_all(self, value: Any) -> Any:
        """`value`, a tensor or tuples and mappings of them, with each tensor kept, once however often it is in there.

        `taken` gives it back.
        """
        known: dict[int, Shelved] = {}

        def kept(tensor: Tensor) -> Shelved:
            if id(tensor) not in known:
                known[id(tensor)] = self.put(tensor)
            return known[id(tensor)]

        return _mapped(value, Tensor, kept)

    def _write(self, tensor: Tensor, folder: Path) -> Path:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=folder, suffix=".safetensors")
        os.close(handle)
        save_file({NAME: tensor.cpu().contiguous()}, path)
        return Path(path)

    def _let_go(self, size: int) -> None:
        self.in_memory -= size

    def _remove(self, path: Path, size: int) -> None:
        self.in_files -= size
        path.unlink(missing_ok=True)


class Shelved:
    """A tensor that a shelf keeps."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def tensor(self) -> Tensor:
        """The tensor, on the device that it came from; read from its file each time where it is in one."""
        return self._read()


def taken(value: Any) -> Any:
    """What `Shelf.put_all` was given."""
    return _mapped(value, Shelved, Shelved.tensor)


def _mapped(value: Any, kind: type[Value], change: Callable[[Value], Any]) -> Any:
    """`value` with each member of `kind` changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(member, kind, change) for member in value)
    if isinstance(value, dict):
        return {name: _mapped(member, kind, change) for name, member in value.items()}
    return value


def _read(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        found: Tensor = file.get_tensor(NAME)
    return found
