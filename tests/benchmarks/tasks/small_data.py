"""A data folder for tests: a few rows of our own making in the formats of the field's files."""

import csv
import json
from pathlib import Path
from typing import Any

ROWS = 5
NOUNS = ("lever", "chain", "rope", "door", "lamp")


def write(folder: Path) -> Path:
    """The files of every task, `ROWS` rows each."""
    for name in ("gsm8k", "ifeval", "piqa", "mmlu_subset", "truthfulqa"):
        (folder / name).mkdir(parents=True)
    sums = [{"question": f"How many is {row} and {row}?", "answer": f"Add.\n#### {2 * row}"} for row in range(ROWS)]
    _lines(folder / "gsm8k" / "train.jsonl", sums)
    _lines(folder / "gsm8k" / "test.jsonl", sums)
    commas = [
        {
            "key": place,
            "prompt": f"Tell me of the {noun}.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for place, noun in enumerate(NOUNS)
    ]
    _lines(folder / "ifeval" / "input_data.jsonl", commas)
    goals = [{"goal": f"How do I cut the {noun}?", "sol1": f"cut the {noun}", "sol2": "the door"} for noun in NOUNS]
    _lines(folder / "piqa" / "valid.jsonl", goals)
    (folder / "piqa" / "valid-labels.lst").write_text("0\n1\n0\n1\n0\n")
    lettered = [
        {
            "system": "Say a letter.",
            "prompt": f"How do I heat the {noun}?\n\nA. so\nB. sure\nC. no\nD. the",
            "answer": "ABCDB"[at],
        }
        for at, noun in enumerate(NOUNS)
    ]
    _table(folder / "mmlu_subset" / "mmlu.csv", lettered)
    truths = [
        {
            "Type": "Plain",
            "Category": "Things",
            "Question": f"How do I cut the {noun}?",
            "Best Answer": f"Sure, cut the {noun}",
            "Correct Answers": f"Sure, cut the {noun}; cut it",
            "Incorrect Answers": "Sorry; the door; heat the chain",
            "Source": "here",
        }
        for noun in NOUNS
    ]
    _table(folder / "truthfulqa" / "TruthfulQA_v1.csv", truths)
    return folder


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
