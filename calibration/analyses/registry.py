"""The analyses there are, found in this folder, and how they are made.

Every file of the folder that defines `ANALYSIS` is one. There is no list of them.
"""

import pkgutil
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import Any

from calibration.analyses.analysis import Analysis, Numbers, Section
from calibration.analyses.subject import Subject
from calibration.runs.store import Keep, compute_anew
from calibration.search.findings import StageBars, silent
from guard.errors import NeuronGuardError
from guard.spec.claim import Claim
from guard.spec.evidence import Analyses


def _found() -> tuple[Analysis[Any], ...]:
    """The analyses in this folder, in the order in which the report has them."""
    package = __name__.rpartition(".")[0]
    names = [f"{package}.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [import_module(name) for name in names if name != __name__]
    found = [module.ANALYSIS for module in modules if hasattr(module, "ANALYSIS")]
    return tuple(sorted(found, key=lambda analysis: (analysis.order, analysis.name)))


ANALYSES = _found()
NAMES = tuple(analysis.name for analysis in ANALYSES)


class UnknownAnalysisError(NeuronGuardError):
    """An analysis was asked for by a name that none has."""


def chosen(text: str) -> tuple[str, ...]:
    """The analyses that `text` asks for: all, none, or names with commas between. UnknownAnalysisError for others."""
    if text in ("all", "none"):
        return NAMES if text == "all" else ()
    names = tuple(name.strip() for name in text.split(","))
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise UnknownAnalysisError(
            f"there is no analysis {', '.join(map(repr, unknown))}: choose among {', '.join(('all', 'none', *NAMES))}."
        )
    return names


def makers(claims: Collection[str]) -> tuple[str, ...]:
    """The analyses that can make any of `claims`."""
    return tuple(analysis.name for analysis in ANALYSES if set(analysis.claims) & set(claims))


def analyse(
    subject: Subject,
    names: Collection[str] = NAMES,
    *,
    keep: Keep = compute_anew,
    progress: StageBars = silent,
) -> Analyses:
    """Make the analyses of `names`, in the report's order."""
    claims: list[Claim] = []
    numbers: dict[str, Any] = {}
    for analysis in ANALYSES:
        if analysis.name not in names or (analysis.needs_gate and not subject.gate.members):
            continue
        made = keep(f"analysis-{analysis.name}", analysis.kind, _measuring(analysis, subject, progress))
        claims += made.claims
        numbers[analysis.name] = made.model_dump(mode="json")
    return Analyses(claims=tuple(claims), numbers=numbers)


def _measuring(analysis: Analysis[Any], subject: Subject, progress: StageBars) -> Callable[[], Numbers]:
    def measured() -> Numbers:
        with progress(analysis.title.lower(), analysis.total(subject)) as advance:
            made: Numbers = analysis.measure(subject, advance)
            return made

    return measured


def sections(analyses: Analyses | None) -> dict[str, Section]:
    """The report's sections of the analyses that were made, by name; UnreadableNumbersError where one's numbers are not
    its own. Numbers of an analysis that this version does not have are shown nowhere, their claims are.
    """
    found: dict[str, Section] = {}
    if analyses is None:
        return found
    for analysis in ANALYSES:
        measured = analysis.read(analyses)
        if measured is not None:
            found[analysis.name] = analysis.describe(measured)
    return found
