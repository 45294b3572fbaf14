"""A spec file is there whole or not at all, and a bad one is refused in one sentence."""

import errno
import os
import random
import signal
import time
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from guard.errors import SpecError
from guard.spec import store
from guard.spec.edit_spec import EditSpec
from tests.guard.attacks import ATTACKS
from tests.guard.specs import small_spec

MOST_KILLS, INTERRUPTED_WRITES = 500, 10


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "guard.safetensors"
    small_spec().save(path)
    return path


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_bad_file_is_refused_in_a_sentence_that_says_why(attack: str, saved: Path) -> None:
    change, reason = ATTACKS[attack]
    saved.write_bytes(change(saved.read_bytes()))
    with pytest.raises(SpecError) as caught:
        EditSpec.load(saved)
    assert str(caught.value) == f"{saved} is not a valid edit spec: {reason}."


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tensors = {"b": torch.tensor([1, -2], dtype=torch.int32), "a": torch.tensor([0.5, -torch.inf, 3.0])}
    store.write(tmp_path / "file", '{"ü":"\\""}', tensors)
    document, read = store.read(tmp_path / "file")
    assert document == '{"ü":"\\""}'
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(SpecError, match="it is larger than the 67108864 bytes that a spec may have"):
        store.read(tmp_path / "file")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none could not be read: No such file or directory\.$"):
        EditSpec.load(tmp_path / "none")


def test_a_path_that_cannot_be_is_told() -> None:
    with pytest.raises(SpecError, match=r"could not be read: embedded null byte\.$"):
        EditSpec.load("a\0b")


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="it is not a file"):
        EditSpec.load(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="it is not a file"):
        EditSpec.load(tmp_path / "pipe")


def test_saving_leaves_nothing_but_the_spec(saved: Path) -> None:
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_a_saved_file_has_the_rights_of_any_new_file(saved: Path) -> None:
    (saved.parent / "other").touch()
    assert saved.stat().st_mode == (saved.parent / "other").stat().st_mode


def test_saving_through_a_link_keeps_the_link(saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to(saved.name)
    small_spec(trigger=None).save(link)
    assert link.is_symlink()
    assert EditSpec.load(saved).trigger is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_the_old_spec_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    before = saved.read_bytes()
    monkeypatch.setattr(call, fail)
    with pytest.raises(SpecError if isinstance(error, OSError) else KeyboardInterrupt):
        small_spec(trigger=None).save(saved)
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_where_a_spec_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"guard could not be written: No such file or directory\.$"):
        small_spec().save(tmp_path / "none" / "guard")


@pytest.mark.parametrize("path", ["/", "", "a\0b"])
def test_a_path_that_cannot_be_written_is_told(path: str) -> None:
    with pytest.raises(SpecError, match="could not be written"):
        small_spec().save(path)


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="its header claims"):
        store.write(tmp_path / "file", " " * store.LARGEST_HEADER, {"a": torch.zeros(1)})
    with pytest.raises(SpecError, match="has a dtype other than"):
        store.write(tmp_path / "file", "{}", {"a": torch.zeros(1, dtype=torch.float64)})
    assert list(tmp_path.iterdir()) == []


def test_data_is_on_disk_before_it_has_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        calls.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        sync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        calls.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    small_spec().save(saved)
    assert calls == ["file", "replace", "folder"]


def killed_writer(path: Path, documents: list[str], tensors: dict[str, Tensor], after: float) -> None:
    """A process that writes file after file to `path`, killed `after` seconds from the end of its first one."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            while True:
                for document in documents:
                    store.write(path, document, tensors)
                    os.write(writer, b".")
        finally:
            os._exit(1)
    assert os.read(reader, 1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(reader)
    os.close(writer)


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path, documents, interrupted = tmp_path / "file", ['"one"', '"two"'], 0
    tensors = {"a": torch.arange(2**18, dtype=torch.int32)}  # a MiB, so that kills fall into the writing
    moment = random.Random(0)
    for _ in range(MOST_KILLS):
        killed_writer(path, documents, tensors, moment.random() * 0.02)
        document, read = store.read(path)
        assert document in documents
        assert torch.equal(read["a"], tensors["a"])
        for left in [entry for entry in tmp_path.iterdir() if entry != path]:
            interrupted += 1
            left.unlink()
        if interrupted == INTERRUPTED_WRITES:
            return
    pytest.fail(f"{MOST_KILLS} kills, and only {interrupted} of them fell into a write")
