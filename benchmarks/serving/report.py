"""The figures of `neuron-guard bench serving`: what is written to JSON, the table, and the results page."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.common.machine import Machine
from benchmarks.op.page import machine_facts
from benchmarks.serving.generate_models import Size
from benchmarks.serving.setting import ARMS, Arm
from guard.spec import atomic_files as files
from guard.spec.edit_spec import Estimate

ASKED = {"cpu": (64, 0.98), "cuda": (256, 0.995)}  # at this batch, this share of the plain throughput
FILES = "serving*.json"
NOT_READ = {"cuda": "not read: no CUDA device was at hand", "cpu": "not read"}


class Quantiles(BaseModel):
    """Median over rounds, and the 10 % and 90 % quantiles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    median: float
    high: float


class Speed(BaseModel):
    """One way of serving at one batch: tokens per second, and seconds to the first token and per token after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens_per_second: Quantiles
    first_token: Quantiles
    per_token: Quantiles


class Load(BaseModel):
    """One batch. The ratios are of throughput, to that of the same round without a guard: medians with intervals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int
    rounds: int
    speeds: dict[Arm, Speed]
    idle_ratio: Estimate
    active_ratio: Estimate


class ServingReport(BaseModel):
    """A whole run of one engine; `seconds` is what it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    engine: str
    dtype: str
    seed: int
    size: Size
    prompt_tokens: int
    new_tokens: int
    graphs: bool
    seconds: float
    loads: tuple[Load, ...]

    @property
    def verdict(self) -> str:
        """Whether the guard costs as little as was asked, in words."""
        batch, lowest = ASKED[self.machine.kind]
        load = next((load for load in self.loads if load.batch == batch), None)
        asked = f"at batch {batch} active ≥ {lowest} of absent"
        if load is None:
            return f"{asked}: not read"
        return f"{asked}: {in_words(load.active_ratio)}, {'met' if load.active_ratio.value >= lowest else 'missed'}"


COLUMNS = ("batch", "guard", "tokens/s", "first token, ms", "per token, ms", "throughput to absent", "rounds")


def in_words(ratio: Estimate) -> str:
    """A ratio with its interval."""
    return f"{ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f})"


def rows_of(report: ServingReport) -> list[tuple[str, ...]]:
    """One row a batch and way of serving, in the order of COLUMNS."""
    rows = []
    for load in report.loads:
        ratios = {"absent": "1", "idle": in_words(load.idle_ratio), "active": in_words(load.active_ratio)}
        for arm in ARMS:
            speed = load.speeds[arm]
            times = [_spread(quantiles, 1000) for quantiles in (speed.first_token, speed.per_token)]
            rows.append(
                (str(load.batch), arm, _spread(speed.tokens_per_second, 1), *times, ratios[arm], str(load.rounds))
            )
    return rows


def caption(report: ServingReport) -> str:
    """What was timed."""
    size = report.size
    return (
        f"Engine {report.engine}{', CUDA graphs' if report.graphs else ''}; random weights, {report.dtype}: "
        f"{size.layers} layers, d_model {size.d_model}, d_ff {size.d_ff}, vocabulary {size.vocabulary}; "
        f"{size.edited:.0%} of the neurons of layers {', '.join(map(str, size.guarded_layers))} edited by way of a "
        f"trigger. As many requests as the batch at once, {report.prompt_tokens} tokens of prompt, {report.new_tokens} "
        "of answer. The three ways in turns within each round; medians over rounds, 10 % and 90 % quantiles in "
        "brackets, for ratios 95 % bootstrap intervals."
    )


def table_of(report: ServingReport) -> Table:
    """The report as a table for the terminal."""
    machine = report.machine
    table = Table(
        title=f"Serving with {report.engine} on {machine.device}",
        caption=f"{caption(report)} {machine.threads} threads at load {machine.load_average:.1f}. {report.verdict}.",
    )
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "guard" else "right")
    for row in rows_of(report):
        table.add_row(*row)
    return table


def write_page(path: Path) -> None:
    """Write the results page to `path` from every serving*.json in its folder."""
    found = sorted(path.parent.glob(FILES))
    reports = [ServingReport.model_validate_json(file.read_text(encoding="utf-8")) for file in found]
    files.write(path, page(reports).encode())


def page(reports: Sequence[ServingReport]) -> str:
    """The page as Markdown; what was not read says so."""
    lines = ["# Serving", "", "Written by `neuron-guard bench serving --page` from the JSON files beside this page."]
    for kind, name in (("cuda", "A CUDA device"), ("cpu", "A CPU")):
        lines += ["", f"## {name}"]
        own = [report for report in reports if report.machine.kind == kind]
        if not own:
            lines += ["", NOT_READ[kind]]
        for report in own:
            lines += ["", *(f"- {fact}: {text}" for fact, text in machine_facts(report.machine))]
            lines += [f"- took: {report.seconds:.0f} s", "", caption(report), "", f"Asked, {report.verdict}.", ""]
            lines += [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows_of(report))]
    return "\n".join(lines) + "\n"


def _spread(quantiles: Quantiles, factor: float) -> str:
    low, median, high = (f"{value * factor:.4g}" for value in (quantiles.low, quantiles.median, quantiles.high))
    return f"{median} ({low} to {high})"
