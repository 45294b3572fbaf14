"""What `neuron-guard calibrate` ends with: five lines for someone who has never seen the project.

All numbers behind them, and every word of the field, are in the report and in `neuron-guard inspect`.
"""

import math
import re
import shlex
import shutil
import sys
from pathlib import Path

from calibration.options import CalibrationOptions
from guard.spec.edit_spec import EditSpec, Estimate, HeldOut

COMMAND = "neuron-guard"
WIDTH = 100
CLAUSE = re.compile(r" \(|[,;:] ")


def closing(spec: EditSpec, options: CalibrationOptions) -> tuple[str, str, str, str, str]:
    """What the model does without and with the guard, what that costs, the verdict, the files, the next command."""
    held_out = spec.evidence.held_out
    return answered(held_out), cost(held_out), verdict(spec), written(options), following(spec, options)


def answered(held_out: HeldOut) -> str:
    """How many harmful requests are answered, guard off and on."""
    both = held_out.harmful_compliance
    interval = f"95% interval {between(both.on)}"
    return (
        f"Harmful requests answered, guard off → on: {share(both.off.value)} → {share(both.on.value)} ({interval}), "
        f"{both.on.n:,} asked"
    )


def cost(held_out: HeldOut) -> str:
    """How many harmless requests are refused, guard off and on, and how much less likely the model's own words get.

    KL(off || on) is the mean log-ratio of the probabilities of what the model says with the guard off, so exp(−KL) is
    what is left of the probability of such a token, as a geometric mean.
    """
    both, lost = held_out.benign_refusal, -math.expm1(-max(0.0, held_out.benign_kl.value))
    words = "< 0.1%" if lost < 0.0005 else share(lost)
    return (
        f"Cost: harmless requests refused {share(both.off.value)} → {share(both.on.value)} ({between(both.on)}), "
        f"{both.on.n:,} asked; wording shifts {words}"
    )


def verdict(spec: EditSpec) -> str:
    """Whether it works, and the first reason where it does not, as far as that goes on a line."""
    found = spec.evidence.verdict
    if found.outcome == "effective":
        return "Verdict: effective. It passed every test, on requests that were not used to find it."
    more = f" (1 of {len(found.reasons)} reasons)" if len(found.reasons) > 1 else ""
    opening = "Verdict: refuted, "
    return f"{opening}{fitted(found.reasons[0], WIDTH - len(opening) - len(more))}{more}"


def written(options: CalibrationOptions) -> str:
    """Which files were written."""
    if options.report is None:
        return f"Wrote the guard to {options.output}; with --report PAGE.html the evidence is written too"
    return f"Wrote the report to {options.report} and the guard to {options.output}"


def following(spec: EditSpec, options: CalibrationOptions) -> str:
    """The command to serve what works; for a refuted spec where to look, since nothing would serve it."""
    if spec.evidence.verdict.outcome == "effective":
        chosen = [f"--{name}={value}" for name in ("device", "dtype") if (value := getattr(options, name)) != "auto"]
        return f"Next: {pasted('serve', options.model, '--spec', str(options.output), *chosen)}"
    page = "" if options.report is None else "the report says what was found; so does "
    return f"Next: {page}{pasted('inspect', str(options.output))}"


def pasted(*arguments: str) -> str:
    """A command of this program for the shell that started it, which need not find it by its name alone."""
    return f"{called()} {shlex.join(arguments)}"


def called() -> str:
    """How this program was called, as a shell takes it."""
    script = sys.argv[0]
    if Path(script).name != COMMAND:
        return f"{shlex.quote(sys.executable)} -m neuron_guard"
    found = shutil.which(COMMAND)
    return COMMAND if found is not None and Path(found).samefile(script) else shlex.quote(script)


def fitted(reason: str, width: int) -> str:
    """A reason without its last clauses where it is longer than `width`; its first clause at the least."""
    ends = [*(match.start() for match in CLAUSE.finditer(reason)), len(reason)]
    return reason[: max((end for end in ends if end <= width), default=ends[0])]


def share(value: float) -> str:
    """A share in [0, 1] as a percentage, with a decimal where it has one."""
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def between(value: Estimate) -> str:
    """The interval of a share: "0 to 4.8%"."""
    return f"{share(value.low).removesuffix('%')} to {share(value.high)}"
