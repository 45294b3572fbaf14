"""Finished stages: taken up again, bound to their run, whole, private, and gone in the end."""

import fcntl
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.prompts.material import Answers
from calibration.runs.store import OutputError, Store, StoreError, alone_in
from calibration.search.bounds import Bounds, Measured, Searched
from calibration.search.gate import Gate
from calibration.search.selection import Member
from guard.spec.edit_spec import LayerEdit, Trigger

KEY = {"model": "tiny", "seed": "0"}
KEPT = Answers(tokens=((1, 2), ()))
OTHER = Answers(tokens=((9,),))


def never() -> Answers:
    raise AssertionError("the stage was computed again")


def test_a_finished_stage_is_taken_up_without_computing_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    assert Store(folder, KEY).stage("answers", Answers, lambda: KEPT) == KEPT
    assert Store(folder, KEY).stage("answers", Answers, never) == KEPT


def test_stages_of_other_names_are_their_own(tmp_path: Path) -> None:
    checkpoint = Store(tmp_path / "work", KEY)
    checkpoint.stage("one", Answers, lambda: KEPT)
    assert checkpoint.stage("two", Answers, lambda: OTHER) == OTHER


@pytest.mark.parametrize("key", [KEY | {"seed": "1"}, KEY | {"data": "x"}, {"model": "tiny"}, {}])
def test_under_another_key_nothing_is_taken_over(key: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Store(folder, KEY).stage("answers", Answers, lambda: KEPT)
    assert Store(folder, key).stage("answers", Answers, lambda: OTHER) == OTHER
    assert sorted(path.name for path in folder.iterdir()) == ["answers.json", "key"]


def test_the_order_in_which_a_key_is_written_makes_no_other_key(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Store(folder, KEY).stage("answers", Answers, lambda: KEPT)
    assert Store(folder, dict(reversed(KEY.items()))).stage("answers", Answers, never) == KEPT


def test_a_folder_without_a_key_is_neither_trusted_nor_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine").write_text("kept")
    with pytest.raises(StoreError, match="is no work folder of a calibration"):
        Store(folder, KEY)
    assert (folder / "mine").read_text() == "kept"


@settings(max_examples=30)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode) | st.integers(0, 20))
def test_a_stage_whose_file_is_corrupt_is_computed_again(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | int
) -> None:
    folder = tmp_path_factory.mktemp("kept") / "work"
    checkpoint = Store(folder, KEY)
    checkpoint.stage("answers", Answers, lambda: KEPT)
    file = folder / "answers.json"
    file.write_bytes(content if isinstance(content, bytes) else file.read_bytes()[:content])
    assert Store(folder, KEY).stage("answers", Answers, lambda: OTHER) == OTHER
    assert Store(folder, KEY).stage("answers", Answers, never) == OTHER


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 64])
def test_a_corrupt_key_empties_the_folder(content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Store(folder, KEY).stage("answers", Answers, lambda: KEPT)
    (folder / "key").write_bytes(content)
    assert Store(folder, KEY).stage("answers", Answers, lambda: OTHER) == OTHER


def test_a_stage_of_another_kind_under_the_same_name_is_computed_again(tmp_path: Path) -> None:
    checkpoint = Store(tmp_path / "work", KEY)
    checkpoint.stage("stage", Answers, lambda: KEPT)
    assert checkpoint.stage("stage", Gate, Gate) == Gate()


def test_the_folder_and_its_files_are_their_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "deep" / "work"
        Store(folder, KEY).stage("answers", Answers, lambda: KEPT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_stage_that_was_interrupted_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    checkpoint = Store(tmp_path / "work", KEY)

    def interrupted() -> Answers:
        raise error

    with pytest.raises(error):
        checkpoint.stage("answers", Answers, interrupted)
    assert [path.name for path in checkpoint.folder.iterdir()] == ["key"]
    assert checkpoint.stage("answers", Answers, lambda: KEPT) == KEPT


def test_a_stage_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Store(tmp_path / "work", KEY)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.stage("answers", Answers, lambda: KEPT)
    assert not (checkpoint.folder / "answers.json").exists()


def test_discarding_removes_the_folder(tmp_path: Path) -> None:
    checkpoint = Store(tmp_path / "work", KEY)
    checkpoint.stage("answers", Answers, lambda: KEPT)
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_gate_with_one_sided_bounds_comes_back_as_it_was(tmp_path: Path) -> None:
    infinity = float("inf")
    edit = LayerEdit(layer=4, neurons=(1, 3), scale=(1.0, 2.0), lower=(-infinity, -infinity), upper=(0.1, infinity))
    bounds = Bounds(family="clamp", strength=0.3, amplification=2.0)
    gate = Gate(
        members=(Member(layer=4, neuron=1, carries="compliance", effect=1 / 3),),
        searched=Searched(bounds=bounds, edits=(edit,), measured=Measured(0.1, 1 / 7, 1e-9, 0.0, 0.0), trials=()),
        trigger=Trigger(layer=1, threshold=0.1, direction=(1e-7, -3.3), false_trigger_rate=0.01, calibration_size=120),
    )
    Store(tmp_path / "work", KEY).stage("gate", Gate, lambda: gate)
    assert Store(tmp_path / "work", KEY).stage("gate", Gate, Gate) == gate


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(OutputError, match="another run"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="name another folder"), alone_in(tmp_path / "file"):
        pass


def test_a_run_under_another_key_keeps_its_lock_on_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Store(folder, KEY).stage("answers", Answers, lambda: KEPT)
    (folder / "activations").mkdir()
    with alone_in(folder):
        Store(folder, KEY | {"seed": "1"})
        assert [path.name for path in folder.iterdir()] == ["key"]
        with pytest.raises(OutputError, match="another run"), alone_in(folder):
            pass


def test_a_folder_that_a_run_removes_while_another_opens_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flock = tmp_path / "work", fcntl.flock
    removed: list[Path] = []

    def removing(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(folder)
            folder.rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removing)
    with alone_in(folder, private=True):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with pytest.raises(OutputError, match="another run"), alone_in(folder):
            pass
    assert removed


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_left_empty_goes_if_the_run_made_it(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    if there:
        folder.mkdir()
    with alone_in(folder):
        assert folder.is_dir()
    assert folder.exists() == there
