"""The results page of the op and of generation, written from the JSON files beside it, never by hand.

What was not read stays empty and says so: no figure is carried over from another device.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.machine import Machine
from benchmarks.op import report as op_report
from benchmarks.op.report import OpReport, in_words, met_in_words
from benchmarks.serving import generate_report
from benchmarks.serving.generate_report import GenerateReport
from guard.spec import atomic_files as files

KINDS = (("cuda", "A CUDA device"), ("cpu", "A CPU"))
NOT_READ = {"cuda": "not read: no CUDA device was at hand", "cpu": "not read"}
OP_FILES, GENERATE_FILES = "op*.json", "generate*.json"


def write_page(path: Path) -> None:
    """Write the page to `path` from every op*.json and generate*.json in its folder."""
    ops, generations = read_reports(path.parent)
    files.write(path, page(ops, generations).encode())


def read_reports(folder: Path) -> tuple[list[OpReport], list[GenerateReport]]:
    """Every report of the op and of generation in `folder`, by name."""
    ops = [OpReport.model_validate_json(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(OP_FILES))]
    generations = [
        GenerateReport.model_validate_json(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob(GENERATE_FILES))
    ]
    return ops, generations


def page(ops: Sequence[OpReport], generations: Sequence[GenerateReport]) -> str:
    """The page as Markdown."""
    lines = [
        "# The op and generation",
        "",
        "Written by `neuron-guard bench op` and `neuron-guard bench generate` from the JSON files beside this page; "
        "`python -m benchmarks.op.page` writes it again.",
    ]
    for kind, name in KINDS:
        lines += ["", f"## {name}: the op"]
        own = [report for report in ops if report.machine.kind == kind]
        lines += [line for report in own for line in _op(report)] or ["", NOT_READ[kind]]
        lines += ["", f"## {name}: generation"]
        said = [report for report in generations if report.machine.kind == kind]
        lines += [line for report in said for line in _generation(report)] or ["", NOT_READ[kind]]
    return "\n".join(lines) + "\n"


def facts(report: OpReport) -> list[tuple[str, str]]:
    """What the figures were read on and how, as pairs of a name and a text."""
    rounds = sorted(measured.rounds for measured in report.measurements)
    checked = sorted(measured.checked_rows for measured in report.measurements)
    return [
        *machine_facts(report.machine),
        ("data type", report.dtype),
        ("copy bandwidth", f"{report.copy_bandwidth / 1e9:.1f} GB/s, {report.copied_bytes / 1e6:.0f} MB to and fro"),
        ("rounds", f"{rounds[0]} to {rounds[-1]} for each shape, by time" if rounds else "none"),
        ("compared with the reference", f"{checked[0]} to {checked[-1]} rows" if checked else "none"),
        ("memory limit", f"{report.memory_limit / 1e9:.1f} GB"),
        ("not compared with", "; ".join(f"{name} ({reason})" for name, reason in report.absent.items()) or "none"),
        ("took", f"{report.seconds:.0f} s"),
    ]


def machine_facts(machine: Machine) -> list[tuple[str, str]]:
    """Device, driver, versions, load."""
    found = [("device", machine.device)]
    if machine.kind == "cuda":
        found += [("driver", machine.driver or "unknown"), ("CUDA", machine.cuda or "unknown")]
    named = {"Python": machine.python, **machine.versions}
    versions = ", ".join(f"{name} {version}" for name, version in named.items())
    threads = f"{machine.threads} of {machine.processors} processors, load {machine.load_average:.1f} before the run"
    edits = [("edits on the CPU", machine.edits_on_cpu or "unknown")] if machine.kind == "cpu" else []
    return [*found, ("versions", versions), ("threads", threads), *edits]


def _op(report: OpReport) -> list[str]:
    misses = [each for each in report.judgements if not each.met]
    return [
        "",
        *(f"- {name}: {text}" for name, text in facts(report)),
        *(f"- left out: {each.in_words}" for each in report.skipped),
        "",
        "1 % of the neurons clamped, at every token. Medians; *spread* is the 90 % minus the 10 % quantile of ours. "
        "*Of copy* counts gate and up read and the neurons written, at the copy bandwidth; it passes 1 where they stay "
        "in the cache.",
        "",
        *_table(op_report.COLUMNS, op_report.rows_of(report)),
        "",
        "Asked, at 1 % edited and each share of active tokens:",
        "",
        *(f"- {line}" for line in met_in_words(report)),
        *(["", "Missed:", ""] if misses else []),
        *(
            f"- {each.what} at d_ff {each.d_ff}, {each.tokens} tokens, {each.active:.0%} active: "
            f"{in_words(each.value) if each.what.startswith('seconds') else f'{each.value:.2f}'} ({each.asked})"
            for each in misses
        ),
    ]


def _generation(report: GenerateReport) -> list[str]:
    return [
        "",
        *(f"- {name}: {text}" for name, text in machine_facts(report.machine)),
        "",
        generate_report.caption(report),
        "",
        *_table(generate_report.COLUMNS, generate_report.rows_of(report)),
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


if __name__ == "__main__":
    write_page(Path(__file__).parents[1] / "results" / "op.md")
