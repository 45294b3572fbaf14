"""Finished stages of a run, so that one that was interrupted resumes, and a lock, so that two do not share a folder.

Each stage's result is a pydantic model, written to one JSON file in a folder, whole or not at all. The folder is bound
to the run by a key over everything that decides its results (model, tokenizer, data, options, versions): under another
key nothing is taken over. It holds token ids of the model's answers, so it is readable by its owner alone, and it is
removed once the run is complete. Whoever opens a store first makes the folder its own with `alone_in`.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from guard.errors import NeuronGuardError
from guard.spec import atomic_files as files

Result = TypeVar("Result", bound=BaseModel)


class Keep(Protocol):
    """Gives a stage's result: kept from an earlier run, or computed now."""

    def __call__(self, name: str, kind: type[Result], compute: Callable[[], Result], /) -> Result:
        """The result of stage `name`."""


def compute_anew(_: str, __: type[Result], compute: Callable[[], Result]) -> Result:
    """Keeps nothing: every stage is computed."""
    return compute()


class StoreError(NeuronGuardError):
    """A folder that is in the way of a run's own."""


class OutputError(NeuronGuardError):
    """A folder that cannot be written to, or that another run is writing to."""


class Store:
    """The stages of one run, kept in `folder`; with another `key` than the folder's the folder is emptied first."""

    def __init__(self, folder: Path, key: Mapping[str, str]) -> None:
        self.folder = folder
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        recorded = folder / "key"
        if folder.exists() and not recorded.exists() and any(folder.iterdir()):
            raise StoreError(f"{folder} exists and is no work folder of a calibration: move it away.")
        if recorded.exists() and recorded.read_bytes() != digest.encode():
            _empty(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not recorded.exists():
            files.write(recorded, digest.encode(), private=True)

    def stage(self, name: str, kind: type[Result], compute: Callable[[], Result]) -> Result:
        """The stage's kept result, or `compute()`'s, kept. A result that no longer validates is computed again."""
        path = self.folder / f"{name}.json"
        if path.exists():
            try:
                return kind.model_validate_json(path.read_bytes())
            except ValidationError:
                path.unlink()
        result = compute()
        files.write(path, result.model_dump_json().encode(), private=True)
        return result

    def discard(self) -> None:
        """Remove the folder: the run is complete."""
        shutil.rmtree(self.folder)


@contextmanager
def alone_in(folder: Path, *, private: bool = False) -> Iterator[None]:
    """Have the folder to oneself, made if need be, for its owner alone if `private`; one left empty goes again.

    Raises OutputError where it cannot be made, or another run has it.
    """
    there = folder.exists()
    descriptor = _locked(folder, 0o700 if private else 0o777)
    try:
        yield
    finally:
        if not there:
            with suppress(OSError):  # it holds something, or the run has removed it
                folder.rmdir()
        os.close(descriptor)


def _locked(folder: Path, mode: int) -> int:
    """A descriptor of the folder that holds its lock, which a process that is killed gives back."""
    while True:
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written to ({error.strerror}): name another folder.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(f"another run is writing to {folder}: wait for it, or name another folder.") from None
        if _is_at(folder, descriptor):
            return descriptor
        os.close(descriptor)  # a run that has ended meanwhile has removed it


def _is_at(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    """Remove all that is in a folder, and not the folder itself, which carries its run's lock; its key goes last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "key"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
