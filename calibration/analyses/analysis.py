"""What every analysis consists of: its name, how it measures, and what the report says of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from calibration.analyses.subject import Subject
from calibration.report.plot_parts import Plot
from calibration.search.findings import Advance
from guard.spec.measures import Frozen

Measured = TypeVar("Measured", bound=Frozen)


@dataclass(frozen=True)
class Section:
    """A section of the report: a heading, paragraphs of plain text, and figures with their numbers below them.

    The claims that the analysis makes are shown with their grounds by the report itself, above the figures.
    """

    title: str
    paragraphs: tuple[str, ...]
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Analysis(Generic[Measured]):
    """One analysis: `name` is its field in `guard.analyses.Analyses`, `kind` that field's model.

    `measure` is called with the subject and a progress to advance (`total` says how far, None: not known);
    `describe` makes the report's section of what was measured. `needs_gate`: not made where no gate was found.
    """

    name: str
    title: str
    kind: type[Measured]
    measure: Callable[[Subject, Advance], Measured]
    describe: Callable[[Measured], Section]
    total: Callable[[Subject], int | None] = lambda _: None
    needs_gate: bool = False
