"""Write anew what stands beside figures of `neuron-guard bench safety`: their page, table and curve, measuring nothing.

    python -m benchmarks.safety.rewrite benchmarks/results/safety-*.json

writes safety-NAME.html, safety-NAME.md and, where there is a curve, safety-NAME.svg beside each.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from benchmarks.safety import tables
from benchmarks.safety.curve import document as curve
from benchmarks.safety.page import write_safety_page
from benchmarks.safety.report import Report
from guard.errors import NeuronGuardError
from guard.spec import atomic_files as files


class FiguresError(NeuronGuardError):
    """A file that has no figures of the benchmark."""


def rewrite(figures: Path) -> None:
    """Write page, table and curve of `figures` beside them. Raises FiguresError where they are none."""
    try:
        report = Report.model_validate_json(figures.read_bytes())
    except (OSError, ValidationError) as error:
        raise FiguresError(f"{figures} holds no figures of bench safety: name the JSON file of a run.") from error
    files.write(figures.with_suffix(".md"), tables.markdown(report).encode())
    if report.curve:
        files.write(figures.with_suffix(".svg"), curve.picture(report.curve, "svg"))
    write_safety_page(report, figures.with_suffix(".html"))


def main(arguments: Sequence[str]) -> None:
    """Rewrite each file named."""
    for argument in arguments:
        rewrite(Path(argument))


if __name__ == "__main__":
    main(sys.argv[1:])
