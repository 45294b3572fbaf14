"""The real text that the English model is trained on, and what it must never see.

Everything is read by path from one folder and stays there: no text of it enters a log or an error. What is measured on
later (HarmBench, JailbreakBench, XSTest, the tasks, every test split) is read too, only to be left out of training: by
normalised text anywhere, and for harm also what says nearly the same in other words.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from calibration.prompts.request_sets import normalise
from calibration.prompts.rows import read_rows
from guard.errors import NeuronGuardError

ADVBENCH = "advbench/harmful_behaviors.csv"
HARMFUL_TRAIN = "splits/harmful_train.json"
HARMLESS_TRAIN, HARMLESS_VALIDATION = "splits/harmless_train.json", "splits/harmless_val.json"
HARMLESS_TEST = "splits/harmless_test.json"
HARMBENCH = "harmbench/harmbench_behaviors_text_all.csv"
JAILBREAKBENCH = "jailbreakbench/JBC__manual__llama-2-7b-chat-hf.json"
GSM8K, DOLLY = "gsm8k/train.jsonl", "dolly_subset/databricks_dolly_15k.csv"
TEXTS = ("wikitext2/valid.txt", "tinyshakespeare/input.txt")
HARMFUL_TESTS = ((HARMBENCH, "behavior"), (JAILBREAKBENCH, "goal"), ("splits/harmful_val.json", "instruction"))
OTHER_TESTS = (
    (HARMLESS_TEST, "instruction"), (HARMLESS_VALIDATION, "instruction"), ("xstest/xstest_prompts.csv", "prompt"),
    ("truthfulqa/TruthfulQA.csv", "question"), ("truthfulqa/TruthfulQA_v1.csv", "question"),
    ("mmlu_subset/mmlu.csv", "prompt"), ("ifeval/input_data.jsonl", "prompt"), ("piqa/valid.jsonl", "goal"),
    ("gsm8k/test.jsonl", "question"),
)  # fmt: skip
HELD_OUT_SHARE = 0.35
ALIKE = 0.6


class MissingDataError(NeuronGuardError):
    """The folder with the data sets is not there, or lacks one."""


@dataclass(frozen=True, repr=False)
class Goal:
    """A request and, where its source has one, the one line with which compliance begins."""

    prompt: str
    target: str | None = None


@dataclass(frozen=True, repr=False)
class Sources:
    """What training may read, and `held_out`: the AdvBench goals that it may not.

    `answered` are harmless questions with real answers; `texts` are plain text to read, by source.
    """

    harmful: tuple[Goal, ...]
    held_out: tuple[Goal, ...]
    harmless: tuple[str, ...]
    answered: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]


def key(text: str) -> str:
    """The text by which two requests are told to be the same: normalised, letters and digits alone."""
    return " ".join(re.sub(r"[\W_]+", " ", normalise(text)).split())


def column(data: Path, file: str, name: str) -> list[str]:
    """The texts in one column of a data set's file, in order. MissingDataError where there is no such file."""
    path = data / file
    if not path.is_file():
        raise MissingDataError(f"there is no {path}: name the folder that holds the data sets with --data")
    cells = (row.cells.get(name) for row in read_rows(path))
    return [cell for cell in cells if isinstance(cell, str) and cell.strip()]


def _words(text: str) -> frozenset[str]:
    return frozenset(key(text).split())


def alike(text: str, others: Iterable[frozenset[str]]) -> bool:
    """Whether the text shares ALIKE or more of its words with one of the others (Jaccard's index of word sets)."""
    words = _words(text)
    return any(len(words & other) >= ALIKE * len(words | other) for other in others)


@lru_cache(maxsize=4)
def tests(data: Path) -> frozenset[str]:
    """The keys of everything that is kept for measuring, of tasks with several lines also those of the first line."""
    found = set()
    for file, name in (*HARMFUL_TESTS, *OTHER_TESTS):
        for text in column(data, file, name):
            found |= {key(text), key(text.strip().splitlines()[0])}
    return frozenset(found - {""})


def _harmful(data: Path, seed: int) -> tuple[tuple[Goal, ...], tuple[Goal, ...]]:
    """Goals to train on, and AdvBench goals held out; neither has what is measured on, nor what is nearly that."""
    kept_for_tests = [_words(text) for file, name in HARMFUL_TESTS for text in column(data, file, name)]
    goals, targets = column(data, ADVBENCH, "goal"), column(data, ADVBENCH, "target")
    advbench = [
        Goal(goal, target.strip().rstrip(".:"))
        for goal, target in zip(goals, targets, strict=True)
        if not alike(goal, kept_for_tests)
    ]
    random.Random(f"held out {seed}").shuffle(advbench)
    count = round(HELD_OUT_SHARE * len(advbench))
    held_out, training = advbench[:count], advbench[count:]
    known = {key(goal) for goal in goals}
    more = [
        Goal(text)
        for text in column(data, HARMFUL_TRAIN, "instruction")
        if key(text) not in known and not alike(text, kept_for_tests)
    ]
    return (*training, *more), tuple(held_out)


def _answered(data: Path) -> list[tuple[str, str]]:
    """Questions with real answers: GSM8K's without its calculator marks, and dolly's with the text they are about."""
    solved = [re.sub(r"<<[^>]*>>", "", text) for text in column(data, GSM8K, "answer")]
    pairs = list(zip(column(data, GSM8K, "question"), solved, strict=True))
    for row in read_rows(data / DOLLY):
        question, context, response = (str(row.cells[name]) for name in ("instruction", "context", "response"))
        pairs.append((f"{question}\n\n{context}", response))
    return pairs


def read(data: Path, seed: int = 0) -> Sources:
    """Everything that training reads from the folder `data`; `seed` decides which AdvBench goals are held out."""
    kept = tests(data)
    harmful, held_out = _harmful(data, seed)
    texts = []
    for file in TEXTS:
        if not (data / file).is_file():
            raise MissingDataError(f"there is no {data / file}: name the folder that holds the data sets with --data")
        texts.append((data / file).read_text("utf-8"))
    never = kept | {key(goal.prompt) for goal in held_out}
    return Sources(
        harmful=tuple(goal for goal in harmful if key(goal.prompt) not in never),
        held_out=held_out,
        harmless=tuple(text for text in column(data, HARMLESS_TRAIN, "instruction") if key(text) not in never),
        answered=tuple(pair for pair in _answered(data) if key(pair[0]) not in never),
        texts=tuple(texts),
    )
