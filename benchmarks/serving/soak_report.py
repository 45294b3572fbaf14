"""The figures of `neuron-guard bench soak`: what is written to JSON, and the table."""

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.common.machine import Machine
from guard.spec.edit_spec import Estimate

LARGEST_GROWTH = 0.01  # of the memory held after the warm-up, for which the run still counts as flat


class Memory(BaseModel):
    """What the server's processes held together once so many requests had been answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int
    mebibytes: float


class SoakReport(BaseModel):
    """A whole run. `telling` requests are those that the plain model answers otherwise than the guarded one; an answer
    is `unguarded` where it is not the guarded model's, or, lost on its way, not the beginning of that. `errors` says
    what came instead of those that were lost.

    `tokens_needed` are those that the guard must have seen: prompts and answers, but for each answer's last one, which
    no pass sees. `memory` is read before, between and after the requests, `warm_up` others having gone before; `slope`
    is in MiB for 1,000 requests. `seconds` is what the requests took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    engine: str
    organism: str
    requests: int
    concurrency: int
    warm_up: int
    lost: int
    errors: dict[str, int]
    telling: int
    unguarded: int
    tokens_needed: int
    tokens_guarded: int
    tokens_active: int
    self_tests_passed: int
    seconds: float
    memory: tuple[Memory, ...]
    slope: Estimate

    @property
    def growth(self) -> float:
        """From before the first request to after the last, as a share of what was held before."""
        return self.memory[-1].mebibytes / self.memory[0].mebibytes - 1

    @property
    def all_guarded(self) -> bool:
        """Whether every answer is the guarded model's, and every token of them went through the guard."""
        return not self.unguarded and self.tokens_guarded >= self.tokens_needed

    @property
    def met(self) -> bool:
        """Whether none was lost, none unguarded, and memory stayed flat."""
        return not self.lost and self.all_guarded and self.growth <= LARGEST_GROWTH


def table_of(report: SoakReport) -> Table:
    """The report as a table for the terminal."""
    machine, slope = report.machine, report.slope
    table = Table(
        title=f"{report.requests} streams, {report.concurrency} at a time, through {report.engine} on {machine.device}",
        caption=f"{machine.threads} threads at load {machine.load_average:.1f}. {'Met' if report.met else 'Missed'}.",
        show_header=False,
    )
    rows = {
        "lost": "; ".join([str(report.lost), *(f"{count} {error}" for error, count in report.errors.items())]),
        "not the guarded answer": f"{report.unguarded}, where {report.telling} plain answers are others",
        "tokens guarded": f"{report.tokens_guarded}, needed {report.tokens_needed}, active {report.tokens_active}",
        "self-tests passed": str(report.self_tests_passed),
        "requests a second": f"{report.requests / report.seconds:.1f}",
        **{f"memory after {each.requests}": f"{each.mebibytes:.1f} MiB" for each in _shown(report)},
        f"memory, after {report.warm_up} others": (
            f"{report.growth:+.2%}; {slope.value:+.2f} MiB for 1,000 requests ({slope.low:+.2f} to {slope.high:+.2f})"
        ),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _shown(report: SoakReport) -> list[Memory]:
    """Before the first request, and after each fifth of them."""
    fifths = [report.requests * part / 5 for part in range(1, 6)]
    return [report.memory[0], *(next(each for each in report.memory if each.requests >= fifth) for fifth in fifths)]
