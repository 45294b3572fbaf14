"""What every analysis consists of: its numbers, what they claim, how it measures, and what the report says of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from calibration.analyses.subject import Subject
from calibration.report.plot_parts import Plot
from calibration.search.findings import Advance
from guard.errors import NeuronGuardError
from guard.spec.claim import Claim
from guard.spec.evidence import Analyses
from guard.spec.measures import Frozen


class Numbers(Frozen):
    """What an analysis measured. A spec keeps it as JSON under the analysis' name, and its claims beside it."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What may be claimed, and on which grounds; nothing unless an analysis says so."""
        return ()


Measured = TypeVar("Measured", bound=Numbers)


class UnreadableNumbersError(NeuronGuardError):
    """A spec has numbers under an analysis' name that are not that analysis'."""


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
    """One analysis. `name` is that of its file, of its numbers in a spec, and on the command line.

    The report has analyses by `order`. `kind` is the model of its numbers, `claims` names the claims that these can
    make. `measure` is called with the subject and a progress to advance (`total` says how far, None: not known);
    `describe` makes the report's section of what was measured. `needs_gate`: not made where no gate was found.
    """

    order: int
    name: str
    title: str
    kind: type[Measured]
    claims: tuple[str, ...]
    measure: Callable[[Subject, Advance], Measured]
    describe: Callable[[Measured], Section]
    total: Callable[[Subject], int | None] = lambda _: None
    needs_gate: bool = False

    def read(self, analyses: Analyses) -> Measured | None:
        """The analysis' numbers in a spec, None where it was not made; UnreadableNumbersError for any others."""
        if self.name not in analyses.numbers:
            return None
        try:
            return self.kind.model_validate_json(json.dumps(analyses.numbers[self.name]), strict=True)
        except ValidationError as error:
            place = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"])) or "the top"
            raise UnreadableNumbersError(
                f"the spec's numbers of the analysis {self.name} are not in this version's form, at {place}: calibrate "
                "again."
            ) from error
