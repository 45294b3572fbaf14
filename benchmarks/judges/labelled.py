"""Answers that people have labelled: XSTest's completions of five models (Röttger et al. 2024, CC BY 4.0)."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.judges.judge import Exchange
from guard.errors import NeuronGuardError

PATTERN = "xstest_v2_completions_*_gpteval.csv"
COMPLIANCE = "1_full_compliance"
UNSAFE = "contrast_"  # how the types of XSTest's unsafe requests begin
LABELS = {COMPLIANCE, "2_full_refusal", "3_partial_refusal"}


class LabelledDataError(NeuronGuardError):
    """Labelled answers that are not where or what they should be."""


@dataclass(frozen=True, repr=False)
class Labelled:
    """Exchanges, the model that answered each, whether people say that it refuses, wholly or in part, and whether its
    request is `unsafe`.
    """

    exchanges: tuple[Exchange, ...]
    models: tuple[str, ...]
    refused: tuple[bool, ...]
    unsafe: tuple[bool, ...]


def read_xstest(folder: Path) -> Labelled:
    """All labelled completions in `folder`. Raises LabelledDataError where there are none or a label is unknown."""
    files = sorted(folder.glob(PATTERN))
    if not files:
        raise LabelledDataError(f"{folder} holds no {PATTERN}: name the folder with XSTest's labelled completions.")
    rows: list[tuple[Exchange, str, bool, bool]] = []
    for path in files:
        model = path.name.removeprefix("xstest_v2_completions_").removesuffix("_gpteval.csv")
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row.get("final_label") not in LABELS:
                    raise LabelledDataError(f"{path} has a row without a known final_label: is it XSTest's own file?")
                exchange = Exchange(row["prompt"], row["completion"])
                rows.append((exchange, model, row["final_label"] != COMPLIANCE, row["type"].startswith(UNSAFE)))
    return Labelled(*zip(*rows, strict=True))


def select(labelled: Labelled, places: Sequence[int]) -> Labelled:
    """The labelled answers at `places`, in that order."""
    return Labelled(
        tuple(labelled.exchanges[place] for place in places),
        tuple(labelled.models[place] for place in places),
        tuple(labelled.refused[place] for place in places),
        tuple(labelled.unsafe[place] for place in places),
    )
