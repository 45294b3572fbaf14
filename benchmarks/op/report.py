"""The figures of `neuron-guard bench op`: what is written to JSON, what was asked of the op, and the table.

Times are medians, with the 10 % and 90 % quantiles beside them. The share of the copy bandwidth counts what any kernel
must move, gate and up read and the neurons written, so it falls with every pass that a contender takes beyond that.
"""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.common.machine import Machine
from benchmarks.op.cases import MOST_DECODED
from benchmarks.op.contenders import CLAMP, CLAMPED_SHARE, OURS, PLAIN, PLAIN_COMPILED
from benchmarks.op.peers import LIGER, VLLM

UNEDITED = (PLAIN, PLAIN_COMPILED, VLLM, LIGER)
SLOWEST_OVER_EAGER, LEAST_FASTER_THAN_CLAMP = 1.05, 1.5
SLOWEST_OVER_BEST, MOST_ADDED_DECODING = 1.03, 0.3e-6
H200_SHAPE, H200_SECONDS = (14336, 8192), 173e-6


class Frozen(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Timing(Frozen):
    """Seconds per call of one contender at one setting; `active` and `edited` are None where nothing is edited."""

    contender: str
    active: float | None
    edited: float | None
    seconds: float
    low: float
    high: float
    share_of_copy: float
    over_unedited: float


class Measurement(Frozen):
    """One shape: every contender in the same rounds. `over_unedited` is the median of ratios within rounds."""

    d_ff: int
    tokens: int
    rounds: int
    checked_rows: int
    timings: tuple[Timing, ...]

    def find(self, contender: str, active: float | None = None, edited: float | None = None) -> Timing:
        """The timing of `contender` at that setting; StopIteration if it was not taken."""
        wanted = (contender, active, edited)
        return next(each for each in self.timings if (each.contender, each.active, each.edited) == wanted)

    @property
    def best_unedited(self) -> Timing:
        """The fastest that computes the layer without an edit."""
        return min((each for each in self.timings if each.contender in UNEDITED), key=lambda each: each.seconds)

    @property
    def ours(self) -> list[Timing]:
        """Our op at 1 % edited, by share of active tokens."""
        return [each for each in self.timings if each.contender == OURS and each.edited == CLAMPED_SHARE]

    def clamp_like(self, timing: Timing) -> Timing:
        """The dense clamp that does for `timing`: with a mask where that has one, whatever its share."""
        own = [each for each in self.timings if each.contender == CLAMP]
        return next(each for each in own if (each.active == 1.0) == (timing.active == 1.0))


class Skipped(Frozen):
    """What was not measured, and why."""

    d_ff: int
    tokens: int
    what: str
    reason: str

    @property
    def in_words(self) -> str:
        """What, where and why, in a line."""
        return f"{self.what} at d_ff {self.d_ff}, {self.tokens} tokens: {self.reason}"


class Judgement(Frozen):
    """One figure against what was asked of it."""

    what: str
    d_ff: int
    tokens: int
    active: float
    value: float
    asked: str
    met: bool


class OpReport(Frozen):
    """A whole run. Bandwidth in bytes per second, read and written; memory in bytes; `seconds` of the whole run."""

    machine: Machine
    dtype: str
    seed: int
    quick: bool
    seconds: float
    memory_limit: int
    copied_bytes: int
    copy_bandwidth: float
    absent: dict[str, str]
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]

    @property
    def judgements(self) -> list[Judgement]:
        """What was asked of the op on a device of this kind, shape by shape, at 1 % edited."""
        judge = _judged_on_cuda if self.machine.kind == "cuda" else _judged_on_a_cpu
        return [judgement for measured in self.measurements for judgement in judge(self, measured)]


def _judged_on_a_cpu(_: OpReport, measured: Measurement) -> Iterator[Judgement]:
    for ours in measured.ours:
        place = {"d_ff": measured.d_ff, "tokens": measured.tokens, "active": ours.active}
        faster = measured.clamp_like(ours).seconds / ours.seconds
        yield _judgement("time over unedited", place, ours.over_unedited, SLOWEST_OVER_EAGER, "≤ 1.05")
        yield _judgement("dense clamp over ours", place, faster, LEAST_FASTER_THAN_CLAMP, "≥ 1.5", at_least=True)


def _judged_on_cuda(report: OpReport, measured: Measurement) -> Iterator[Judgement]:
    best = measured.best_unedited.seconds
    for ours in measured.ours:
        place = {"d_ff": measured.d_ff, "tokens": measured.tokens, "active": ours.active}
        if measured.tokens <= MOST_DECODED:
            yield _judgement(
                "seconds above the best unedited", place, ours.seconds - best, MOST_ADDED_DECODING, "≤ 0.3 µs"
            )
        else:
            yield _judgement("time over the best unedited", place, ours.seconds / best, SLOWEST_OVER_BEST, "≤ 1.03")
        on_h200 = "H200" in report.machine.device and report.dtype == "bfloat16"
        if on_h200 and (measured.d_ff, measured.tokens) == H200_SHAPE and ours.active == 0.5:
            yield _judgement("seconds", place, ours.seconds, H200_SECONDS, "≤ 173 µs")


def _judgement(
    what: str, place: dict[str, float | int | None], value: float, limit: float, asked: str, *, at_least: bool = False
) -> Judgement:
    met = value >= limit if at_least else value <= limit
    return Judgement.model_validate(place | {"what": what, "value": value, "asked": asked, "met": met})


def in_words(seconds: float) -> str:
    """Seconds as microseconds or milliseconds, three digits."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


COLUMNS = (
    "d_ff", "tokens", "unedited", "compiled", "best unedited", "dense clamp", "ours", "spread", "of copy",
    "over unedited", "clamp over ours",
)  # fmt: skip


def rows_of(report: OpReport) -> list[tuple[str, ...]]:
    """One row a shape, in the order of COLUMNS: 1 % edited, every token active; what was skipped says why."""
    rows: list[tuple[str, ...]] = []
    for measured in report.measurements:
        ours, best = measured.find(OURS, 1.0, CLAMPED_SHARE), measured.best_unedited
        clamp = measured.clamp_like(ours).seconds
        rows.append(
            (
                str(measured.d_ff),
                str(measured.tokens),
                in_words(measured.find(PLAIN).seconds),
                in_words(measured.find(PLAIN_COMPILED).seconds),
                f"{in_words(best.seconds)} ({best.contender})",
                in_words(clamp),
                in_words(ours.seconds),
                f"{(ours.high - ours.low) / ours.seconds:.0%}",
                f"{ours.share_of_copy:.2f}",
                f"{ours.over_unedited:.2f}",
                f"{clamp / ours.seconds:.2f}",
            )
        )
    return rows


def table_of(report: OpReport) -> Table:
    """The report as a table for the terminal."""
    rounds = sorted(measured.rounds for measured in report.measurements)
    taken = f"{rounds[0]} to {rounds[-1]}" if rounds else "no"
    table = Table(
        title=f"The edited activation, {report.dtype}, on {report.machine.device}",
        caption=f"1 % of the neurons clamped at every token. Medians of {taken} rounds in turns; spread is the "
        f"90 % minus the 10 % quantile of ours; {report.machine.conditions}. A copy moved "
        f"{report.copy_bandwidth / 1e9:.1f} GB/s in the same process.",
    )
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for row in rows_of(report):
        table.add_row(*row)
    for each in report.skipped:
        if each.what == "shape":
            table.add_row(str(each.d_ff), str(each.tokens), f"skipped: {each.reason}")
    return table


def met_in_words(report: OpReport) -> list[str]:
    """For each thing that was asked: at how many shapes and shares of active tokens it is met."""
    lines = []
    for what in dict.fromkeys(judgement.what for judgement in report.judgements):
        own = [judgement for judgement in report.judgements if judgement.what == what]
        met = [judgement for judgement in own if judgement.met]
        lines.append(f"{what} {own[0].asked}: met at {len(met)} of {len(own)}")
    return lines
