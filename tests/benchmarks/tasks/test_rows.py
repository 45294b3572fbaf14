"""Rows of the tasks from files, in the form that lm-eval's own tasks expect them in."""

from pathlib import Path

import pytest

from benchmarks.tasks.rows import read, with_choices, with_lettered_choices
from calibration.prompts.rows import PromptFileError
from tests.benchmarks.tasks import small_data

SHARED = Path(__file__).parents[4] / "shared" / "data"
on_the_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not on this machine")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_data.write(tmp_path / "data")


PIQA = {"files": {"validation": "piqa/valid.jsonl"}, "labels": {"validation": "piqa/valid-labels.lst"}, "hub": "-"}
TRUTHFULQA = {"files": {"validation": "truthfulqa/TruthfulQA_v1.csv"}, "hub": "-"}
MMLU = {"files": {"test": "mmlu_subset/mmlu.csv"}, "hub": "-"}


def test_labels_come_from_the_file_beside(data: Path) -> None:
    rows = read(**PIQA, data=str(data), version=1.0)["validation"]  # type: ignore[arg-type]
    assert list(rows["label"]) == [0, 1, 0, 1, 0]


def test_labels_that_do_not_fit_are_an_error(data: Path) -> None:
    (data / "piqa" / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(PromptFileError, match="5 rows, but 2 labels"):
        read(**PIQA, data=str(data))  # type: ignore[arg-type]


def test_truthfulqas_choices_have_the_true_ones_first(data: Path) -> None:
    row = with_choices(read(**TRUTHFULQA, data=str(data))["validation"])[0]  # type: ignore[arg-type]
    false = ["Sorry", "the door", "heat the chain"]
    assert row["mc1_targets"] == {"choices": ["Sure, cut the lever", *false], "labels": [1, 0, 0, 0]}
    assert row["mc2_targets"] == {"choices": ["Sure, cut the lever", "cut it", *false], "labels": [1, 1, 0, 0, 0]}
    assert with_choices(with_choices(read(**TRUTHFULQA, data=str(data))["validation"]))[0] == row  # type: ignore[arg-type]


def test_mmlus_answer_is_the_place_of_its_letter(data: Path) -> None:
    rows = with_lettered_choices(read(**MMLU, data=str(data))["test"])  # type: ignore[arg-type]
    assert [row["answer"] for row in rows] == [0, 1, 2, 3, 1]


def test_the_hubs_mmlu_is_lettered_alike() -> None:
    from datasets import Dataset

    hub = Dataset.from_list([{"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}])
    (row,) = with_lettered_choices(hub)
    assert row == {"prompt": "Which?\n\nA. a\nB. b\nC. c\nD. d", "answer": 2}


@on_the_data
def test_every_row_of_the_fields_files_has_choices() -> None:
    truths = with_choices(read(**TRUTHFULQA, data=str(SHARED))["validation"])  # type: ignore[arg-type]
    assert len(truths) == 817
    assert all(sum(row["mc1_targets"]["labels"]) == 1 < len(row["mc1_targets"]["choices"]) for row in truths)
    assert all(0 < sum(row["mc2_targets"]["labels"]) < len(row["mc2_targets"]["choices"]) for row in truths)
    assert len(with_lettered_choices(read(**MMLU, data=str(SHARED))["test"])) == 1000  # type: ignore[arg-type]
    assert len(read(**PIQA, data=str(SHARED))["validation"]) == 1838  # type: ignore[arg-type]
    ifeval = read(files={"train": "ifeval/input_data.jsonl"}, hub="-", data=str(SHARED))["train"]
    assert len(ifeval) == 540
