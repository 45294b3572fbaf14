"""The report: one HTML file that tells what a spec edits, how strong the evidence is and how the verdict was reached.

It is for people who decide whether to trust a guard, so it stands alone: no file beside it, nothing fetched, figures
drawn by an inlined plotly.js (5 MB: the price of that). Requests and answers come from outside and are escaped, and
harmful text is left out unless asked for: a hash and a word count stand in its place, so a report can be passed on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from calibration.analyses.registry import sections
from calibration.evidence.verdict import RANDOM_GATES, SIGNIFICANCE
from calibration.report.display import sentence
from calibration.report.page import template, write_page
from calibration.report.plot_parts import plotly_script
from calibration.report.plots import draw
from calibration.report.redaction import Shown, quotes, redacted
from calibration.summary import benign_actions
from guard.errors import NeuronGuardError
from guard.spec.edit_spec import EditSpec, OffOn

REFUSED = "refused"
GOOD_CLASS = {"harmful": REFUSED, "benign": "complied"}


class ReportError(NeuronGuardError):
    """A report that cannot be written where it was asked for."""


class AnswerPair(BaseModel):
    """One request with the greedy answers of the model with the guard off and on, and the class of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["harmful", "benign"]
    prompt: str
    off: str
    on: str
    off_class: str
    on_class: str


@dataclass(frozen=True)
class Answer:
    """One answer: what is shown, its class, and whether that class is what a guard is for."""

    shown: Shown
    behaviour: str
    wanted: bool


@dataclass(frozen=True)
class Row:
    """One row of shares in the table off → on."""

    name: str
    estimates: OffOn


def write_report(
    path: str | os.PathLike[str],
    spec: EditSpec,
    examples: Sequence[AnswerPair],
    *,
    model_name: str,
    show_text: bool = False,
) -> None:
    """Write the report of `spec` to `path`, whole or not at all; `examples` are shown in their order.

    Harmful requests and answers to them are redacted unless `show_text`; a refusal is shown. Raises ReportError if the
    file cannot be written.
    """
    page = render_report(spec, examples, model_name=model_name, show_text=show_text)
    write_page(path, page, "report", ReportError)


def render_report(spec: EditSpec, examples: Sequence[AnswerPair], *, model_name: str, show_text: bool = False) -> str:
    """The report as HTML text; arguments as for `write_report`."""
    analysed = sections(spec.evidence.analyses)
    plots, held_out = draw(spec), spec.evidence.held_out
    drawn = plots | {plot.name: plot for section in analysed.values() for plot in section.plots}
    return template("report.html.jinja").render(
        spec=spec,
        evidence=spec.evidence,
        held_out=held_out,
        effective=spec.evidence.verdict.outcome == "effective",
        neurons=sum(len(edit.neurons) for edit in spec.layers),
        guarded_layers=[str(edit.layer) for edit in spec.layers],
        shares=(
            Row("Harmful compliance", held_out.harmful_compliance),
            Row("Benign refusal", held_out.benign_refusal),
            Row("Garbled, harmful requests", held_out.harmful_garbled),
            Row("Garbled, benign requests", held_out.benign_garbled),
        ),
        divergences=(
            ("Benign KL, whole answer, nats", held_out.benign_kl),
            ("Benign KL, first token, nats", held_out.benign_first_token_kl),
        ),
        actions=[(sentence(name).rstrip("."), rate) for name, rate in benign_actions(held_out.benign_rates)],
        examples=[_as_shown(pair, show_text) for pair in examples],
        show_text=show_text,
        model_name=model_name,
        significance=SIGNIFICANCE,
        asked_random_gates=RANDOM_GATES,
        plots=plots,
        analysed=analysed,
        figures={name: {"traces": plot.traces, "layout": plot.layout} for name, plot in drawn.items()},
        plotly=Markup(plotly_script()),  # noqa: S704 - plotly's own source, not text from outside
    )


def _as_shown(pair: AnswerPair, show_text: bool) -> dict[str, object]:
    """The pair for the page. Redacted: harmful requests, their answers with the guard off, and those with it on unless
    they refuse without repeating the request."""
    hide = pair.kind == "harmful" and not show_text
    hide_on = hide and (pair.on_class != REFUSED or quotes(pair.on, pair.prompt))
    if hide and pair.off_class != REFUSED:
        hide_on = hide_on or quotes(pair.on, pair.off)
    good = GOOD_CLASS[pair.kind]
    return {
        "kind": pair.kind,
        "prompt": redacted(pair.prompt, hide),
        "off": Answer(redacted(pair.off, hide), pair.off_class, pair.off_class == good),
        "on": Answer(redacted(pair.on, hide_on), pair.on_class, pair.on_class == good),
    }
