"""Where the tasks' rows come from: files in a folder that the user names, or the hub.

lm-eval asks `read` for a task's data sets (`custom_dataset` in the YAML files here). Rows are read into memory, never
into a cache, so that nothing of a folder is copied. It trades the hub's own preparation of TruthfulQA for its csv file:
a few of its choices are worded differently there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from calibration.prompts.rows import PromptFileError, read_rows

SEPARATOR = ";"  # between the answers in one cell of TruthfulQA.csv
LETTERS = "ABCD"


def read(
    *,
    files: Mapping[str, str],
    hub: str,
    configuration: str | None = None,
    labels: Mapping[str, str] | None = None,
    data: str | None = None,
    **_: object,
) -> Mapping[str, Any]:
    """The data set of each split: `files` below the folder `data`, or the hub's where there is none.

    `labels` are files with one whole number a line, which becomes the column "label". What else lm-eval passes on from
    a task's metadata is not needed. Raises PromptFileError where a file cannot be read or does not fit its labels.
    """
    if data is None:
        found: Mapping[str, Any] = load_dataset(hub, configuration)
        return found
    read_in = {}
    for split, file in files.items():
        path = Path(data) / file
        cells: list[dict[str, object]] = [row.cells for row in read_rows(path)]
        if labels is not None:
            numbers = (Path(data) / labels[split]).read_text("utf-8").split()
            if len(numbers) != len(cells):
                raise PromptFileError(str(path), None, f"has {len(cells)} rows, but {len(numbers)} labels")
            cells = [row | {"label": int(number)} for row, number in zip(cells, numbers, strict=True)]
        read_in[split] = Dataset.from_list(cells)
    return read_in


def with_choices(questions: Any) -> Any:
    """TruthfulQA's rows with `mc1_targets` and `mc2_targets` as the hub has them: choices, the true ones first.

    mc1 has the best answer against all false ones, mc2 all true ones against all false ones (Lin et al. 2022).
    """
    if "mc1_targets" in questions.column_names:
        return questions

    def chosen(row: dict[str, str]) -> dict[str, object]:
        true, false = (_answers(row[f"{kind} answers"]) for kind in ("correct", "incorrect"))
        return {"mc1_targets": _targets(_answers(row["best answer"])[:1], false), "mc2_targets": _targets(true, false)}

    return Dataset.from_list([{"question": row["question"], **chosen(row)} for row in questions])


def with_lettered_choices(questions: Any) -> Any:
    """MMLU's rows with the choices within `prompt`, and the place of the right one as `answer`."""
    if "prompt" in questions.column_names:
        return Dataset.from_list([row | {"answer": LETTERS.index(row["answer"].strip())} for row in questions])
    return Dataset.from_list([{"prompt": _lettered(row), "answer": row["answer"]} for row in questions])


def _lettered(row: Mapping[str, Any]) -> str:
    choices = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return "\n".join([row["question"], "", *choices])


def _answers(cell: str) -> list[str]:
    return [answer.strip() for answer in cell.split(SEPARATOR) if answer.strip()]


def _targets(true: list[str], false: list[str]) -> dict[str, object]:
    return {"choices": [*true, *false], "labels": [1] * len(true) + [0] * len(false)}
