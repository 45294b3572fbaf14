"""Finished stages of a calibration, so that one that was interrupted goes on where it was.

Each stage's result is a pydantic model, written to one JSON file in a folder beside the output, whole or not at all.
The folder is bound to the run by a key over everything that decides its results (model, data, options, versions):
under another key nothing is taken over. It holds token ids of the model's answers, so it is readable by its owner
alone, and it is removed once the spec is written.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
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


class CheckpointError(NeuronGuardError):
    """A folder that is in the way of a calibration's own."""


class Checkpoint:
    """The stages of one run, kept in `folder`; with another `key` than the folder's the folder is emptied first."""

    def __init__(self, folder: Path, key: Mapping[str, str]) -> None:
        self.folder = folder
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        recorded = folder / "key"
        if folder.exists() and not recorded.exists() and any(folder.iterdir()):
            raise CheckpointError(f"{folder} exists and is no work folder of a calibration: move it away.")
        if recorded.exists() and recorded.read_bytes() != digest.encode():
            shutil.rmtree(folder)
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
