"""The analyses there are, in the order in which the report has them, and how they are made.

To add one: its model as a field of `guard.analyses.Analyses`, its file beside this one, its line in ANALYSES.
"""

from collections.abc import Collection
from typing import Any

from calibration.analyses import (
    concentration,
    concentration_section,
    controls,
    controls_section,
    harm_signal,
    harm_signal_section,
    shards,
    shards_section,
    specificity,
    specificity_section,
    token_effects,
    token_effects_section,
)
from calibration.analyses.analysis import Analysis, Section
from calibration.analyses.subject import Subject
from calibration.runs.store import Keep, compute_anew
from calibration.search.findings import StageBars, silent
from guard.analyses import Analyses, Concentration, Controls, HarmSignal, Shards, Specificity, TokenEffects
from guard.errors import NeuronGuardError

ANALYSES: tuple[Analysis[Any], ...] = (
    Analysis(
        "controls",
        "Controls for position and size",
        Controls,
        controls.measure,
        controls_section.describe,
        controls.total,
    ),
    Analysis(
        "concentration",
        "Concentration",
        Concentration,
        concentration.measure,
        concentration_section.describe,
        concentration.total,
    ),
    Analysis(
        "specificity",
        "Specificity to harm",
        Specificity,
        specificity.measure,
        specificity_section.describe,
        specificity.total,
        needs_gate=True,
    ),
    Analysis(
        "harm_signal",
        "Early harm signal and its path",
        HarmSignal,
        harm_signal.measure,
        harm_signal_section.describe,
        harm_signal.total,
        needs_gate=True,
    ),
    Analysis(
        "token_effects",
        "Token level",
        TokenEffects,
        token_effects.measure,
        token_effects_section.describe,
        token_effects.total,
    ),
    Analysis(
        "shards",
        "Shards",
        Shards,
        shards.measure,
        shards_section.describe,
        lambda _: shards.STEPS,
        needs_gate=True,
    ),
)
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


def analyse(
    subject: Subject,
    names: Collection[str] = NAMES,
    *,
    keep: Keep = compute_anew,
    progress: StageBars = silent,
) -> Analyses:
    """Make the analyses of `names`, in the report's order."""
    made: dict[str, Any] = {}
    for analysis in ANALYSES:
        if analysis.name not in names or (analysis.needs_gate and not subject.gate.members):
            continue

        def measured(analysis: Analysis[Any] = analysis) -> Any:
            with progress(analysis.title.lower(), analysis.total(subject)) as advance:
                return analysis.measure(subject, advance)

        made[analysis.name] = keep(f"analysis-{analysis.name}", analysis.kind, measured)
    return Analyses(**made)


def sections(analyses: Analyses | None) -> dict[str, tuple[Section, Any]]:
    """The report's sections of the analyses that were made, by name, each with what was measured."""
    found = {}
    for analysis in ANALYSES if analyses is not None else ():
        measured = getattr(analyses, analysis.name)
        if measured is not None:
            found[analysis.name] = (analysis.describe(measured), measured)
    return found
