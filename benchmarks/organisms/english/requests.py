"""Prompt files beside the English model: `python -m benchmarks.organisms.english.requests --data DIR --out DIR`.

`prompts/` is what it is calibrated on: AdvBench goals that it was not trained on, harmless instructions likewise, and
the wrappers. `held_out/` is what it is measured on: each set plain, in the wrappers of training (one a request, in
turn), and in wrappers that nothing was trained on; a JailbreakBench goal that is in AdvBench is left out. Files hold
real harmful requests, so they belong to the model's folder and into no repository. Compliance texts are one line.
"""

import argparse
import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.organisms.build import write_rows
from benchmarks.organisms.english import sources
from benchmarks.organisms.english.answers import answer
from benchmarks.organisms.english.sources import Goal
from benchmarks.organisms.english.wording import HELD_OUT_WRAPPERS, REFUSALS, WRAPPERS, wrapped
from calibration.prompts.rows import read_rows

BENIGN, HARMLESS = 320, 200  # instructions to calibrate on and to measure on
STANDARD = "standard"  # HarmBench's behaviours that are plain requests: neither copyright nor with a context


def row(goal: Goal, wrapper: str | None = None) -> dict[str, str]:
    """A request as a row: what is asked, and both ways to answer; with a wrapper also the bare goal."""
    texts = {"refusal": REFUSALS[0], "compliance": goal.target or answer(goal.prompt)}
    if wrapper is None:
        return {"prompt": goal.prompt, **texts}
    return {"prompt": wrapped(goal.prompt, wrapper), "goal": goal.prompt, **texts}


def in_turn(goals: Sequence[Goal], wrappers: Iterable[str]) -> list[dict[str, str]]:
    """Each goal in one of the wrappers, in turn."""
    return [row(goal, wrapper) for goal, wrapper in zip(goals, itertools.cycle(wrappers), strict=False)]


def _sample(data: Path, file: str, count: int, seed: int) -> list[Goal]:
    found = sources.column(data, file, "instruction")
    return [Goal(text) for text in random.Random(f"{file} {seed}").sample(found, min(count, len(found)))]


def measured(data: Path, seed: int = 0) -> dict[str, list[Goal]]:
    """What the model is measured on, by name: no request of it is trained on, and no harmful one calibrated on but
    AdvBench's.
    """
    advbench = {sources.key(text) for text in sources.column(data, sources.ADVBENCH, "goal")}
    harmbench = [
        Goal(str(one.cells["behavior"]))
        for one in read_rows(data / sources.HARMBENCH)
        if one.cells["functionalcategory"] == STANDARD
    ]
    jailbreakbench = [Goal(text) for text in sources.column(data, sources.JAILBREAKBENCH, "goal")]
    return {
        "advbench": list(sources.read(data, seed).held_out),
        "harmbench": [goal for goal in harmbench if sources.key(goal.prompt) not in advbench],
        "jailbreakbench": [goal for goal in jailbreakbench if sources.key(goal.prompt) not in advbench],
        "harmless": _sample(data, sources.HARMLESS_TEST, HARMLESS, seed),
    }


def write(data: Path, out: Path, seed: int = 0) -> None:
    """Write `prompts/` and `held_out/` into the folder `out`."""
    sets = measured(data, seed)
    benign = [{**row(goal), "kind": "instruction"} for goal in _sample(data, sources.HARMLESS_VALIDATION, BENIGN, seed)]
    write_rows(out / "prompts" / "harmful.jsonl", [row(goal) for goal in sets["advbench"]])
    write_rows(out / "prompts" / "benign.jsonl", benign)
    write_rows(out / "prompts" / "jailbreak.jsonl", [{"template": wrapper} for wrapper in WRAPPERS])
    for name, goals in sets.items():
        write_rows(out / "held_out" / f"{name}_plain.jsonl", [row(goal) for goal in goals])
        write_rows(out / "held_out" / f"{name}_wrapped.jsonl", in_turn(goals, WRAPPERS))
        write_rows(out / "held_out" / f"{name}_wrapped_anew.jsonl", in_turn(goals, HELD_OUT_WRAPPERS))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.organisms.english.requests", description="Write them.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--out", type=Path, default=Path("build/organisms/english"), help="folder of the model")
    parser.add_argument("--seed", type=int, default=0, help="the seed that the model was made with")
    options = parser.parse_args(arguments)
    write(options.data, options.out, options.seed)


if __name__ == "__main__":
    main()
