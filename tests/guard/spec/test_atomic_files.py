"""A small file is read as what was opened, and written with the rights that it should have."""

import os
import stat
from pathlib import Path

import pytest

from guard.spec import atomic_files as files


def test_a_file_as_large_as_it_may_be_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read(tmp_path / "file", 5, "a test") == b"12345"
    with pytest.raises(files.WrongFileError, match="it is larger than the 4 bytes that a test may have"):
        files.read(tmp_path / "file", 4, "a test")


@pytest.mark.parametrize("name", ["pipe", "folder"])
def test_what_is_no_file_is_refused_without_waiting_and_without_a_descriptor_left(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(files.WrongFileError, match="it is not a file"):
        files.read(tmp_path / name, 5, "a test")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_private_file_is_readable_by_its_owner_alone_from_the_start(tmp_path: Path) -> None:
    files.write(tmp_path / "file", b"1", private=True)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    files.write(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"2"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
