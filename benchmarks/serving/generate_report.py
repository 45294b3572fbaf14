"""The figures of `neuron-guard bench generate`: what is written to JSON, and the table."""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.common.machine import Machine
from benchmarks.serving.generate_models import Size
from guard.spec.edit_spec import Estimate

LOWEST_RATIO = 0.99


class Speed(BaseModel):
    """One family in one mode. `ratio` is guarded over plain tokens per second: the median over paired rounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    mode: Literal["eager", "compiled"]
    parameters: int
    rounds: int
    plain_tokens_per_second: float
    guarded_tokens_per_second: float
    ratio: Estimate

    @property
    def met(self) -> bool:
        """Whether the ratio is what was asked."""
        return self.ratio.value >= LOWEST_RATIO


class GenerateReport(BaseModel):
    """A whole run; `seconds` is what it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    dtype: str
    seed: int
    size: Size
    new_tokens: int
    trigger: bool
    seconds: float
    speeds: tuple[Speed, ...]


COLUMNS = ("family", "mode", "parameters", "rounds", "plain, tokens/s", "guarded, tokens/s", "ratio", "met")


def rows_of(report: GenerateReport) -> list[tuple[str, ...]]:
    """One row a family and mode, in the order of COLUMNS."""
    return [
        (
            each.family,
            each.mode,
            f"{each.parameters / 1e6:.0f} M",
            str(each.rounds),
            f"{each.plain_tokens_per_second:.1f}",
            f"{each.guarded_tokens_per_second:.1f}",
            f"{each.ratio.value:.4f} ({each.ratio.low:.4f} to {each.ratio.high:.4f})",
            "yes" if each.met else "no",
        )
        for each in report.speeds
    ]


def caption(report: GenerateReport) -> str:
    """What was timed, in two sentences."""
    size = report.size
    return (
        f"Random weights, {report.dtype}: {size.layers} layers, d_model {size.d_model}, d_ff {size.d_ff}, vocabulary "
        f"{size.vocabulary}; {size.edited:.0%} of the neurons of layers {', '.join(map(str, size.guarded_layers))} "
        f"edited at every token{', by way of a trigger' if report.trigger else ''}. One prompt of 1 token, "
        f"{report.new_tokens} new ones a round, guarded and plain in turns; medians, 95 % bootstrap intervals in "
        f"brackets; asked is ≥ {LOWEST_RATIO}."
    )


def table_of(report: GenerateReport) -> Table:
    """The report as a table for the terminal."""
    machine = report.machine
    table = Table(
        title=f"transformers generate, guarded over plain, on {machine.device}",
        caption=f"{caption(report)} Read with {machine.conditions}.",
    )
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in ("family", "mode", "met") else "right")
    for row in rows_of(report):
        table.add_row(*row)
    return table
