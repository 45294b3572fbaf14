"""The five lines that a calibration ends with: what they say, in which words, and that they can be pasted."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from calibration.closing import WIDTH, closing
from calibration.evidence.specificity import KindEffect
from calibration.evidence.verdict import judge_held_out
from calibration.options import CalibrationOptions
from calibration.search.bounds import Budget
from guard.spec.edit_spec import EditSpec, Estimate, HeldOut, OffOn
from tests.calibration.example_spec import SHAPES, example_spec

DEMO = CalibrationOptions(
    model="benchmarks/organisms/weights/two-layer",
    harmful="h.jsonl",
    benign="b.jsonl",
    output=Path("guard.safetensors"),
    report=Path("report.html"),
)


@pytest.fixture(autouse=True)
def as_the_demo_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/neuron-guard", "calibrate"])


def with_held_out(spec: EditSpec, **changed: Any) -> EditSpec:
    held_out = spec.evidence.held_out.model_copy(update=changed)
    return spec.model_copy(update={"evidence": spec.evidence.model_copy(update={"held_out": held_out})})


def refuted(*reasons: str) -> EditSpec:
    spec = example_spec(effective=False)
    verdict = spec.evidence.verdict.model_copy(update={"reasons": reasons})
    return spec.model_copy(update={"evidence": spec.evidence.model_copy(update={"verdict": verdict})})


def whole(value: float, low: float, high: float, n: int) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=n)


def test_the_first_line_says_what_the_model_does_without_and_with_the_guard() -> None:
    both = OffOn(off=whole(1.0, 0.952, 1.0, 77), on=whole(0.026, 0.007, 0.09, 77))
    assert closing(with_held_out(example_spec(), harmful_compliance=both), DEMO)[0] == (
        "Harmful requests answered, guard off → on: 100% → 2.6% (95% interval 0.7 to 9%), 77 asked"
    )


@pytest.mark.parametrize(("kl", "words"), [(0.0, "< 0.1%"), (3.7e-6, "< 0.1%"), (0.01, "1%"), (0.5, "39.3%")])
def test_the_second_says_what_it_costs_with_the_kl_as_what_becomes_of_the_usual_words(kl: float, words: str) -> None:
    both = OffOn(off=whole(0.0, 0.0, 0.031, 120), on=whole(0.008, 0.001, 0.046, 120))
    spec = with_held_out(example_spec(), benign_refusal=both, benign_kl=whole(kl, kl, kl, 120))
    assert closing(spec, DEMO)[1] == (
        f"Cost: harmless requests refused 0% → 0.8% (0.1 to 4.6%), 120 asked; wording shifts {words}"
    )


def test_the_third_is_the_verdict() -> None:
    assert closing(example_spec(), DEMO)[2].startswith("Verdict: effective.")


def test_a_refuted_verdict_comes_with_its_first_reason_and_how_many_there_are() -> None:
    reason = "benign refusal rose from 0.0% to 9.2%, budget 1.0%"
    assert closing(refuted(reason), DEMO)[2] == f"Verdict: refuted, {reason}"
    assert closing(refuted(reason, "another"), DEMO)[2] == f"Verdict: refuted, {reason} (1 of 2 reasons)"


def test_a_reason_too_long_for_the_line_loses_whole_clauses_from_its_end() -> None:
    reason = "harmful compliance went from 96.9% to 95.3%, not a fall of more than 30% at p < 0.01 (p = 1)"
    assert closing(refuted(reason), DEMO)[2] == f"Verdict: refuted, {reason.split(',')[0]}"
    assert closing(refuted("x" * 200 + ", y"), DEMO)[2] == "Verdict: refuted, " + "x" * 200


def test_the_fourth_says_where_the_files_lie() -> None:
    assert closing(example_spec(), DEMO)[3] == "Wrote the report to report.html and the guard to guard.safetensors"
    alone = closing(example_spec(), DEMO.model_copy(update={"report": None}))[3]
    assert alone.startswith("Wrote the guard to guard.safetensors")
    assert "--report" in alone


def test_the_fifth_is_a_command_that_the_shell_takes_with_the_paths_as_they_are() -> None:
    asked = {"model": "my models/one", "output": Path("out put/guard.safetensors"), "dtype": "bfloat16"}
    last = closing(example_spec(), DEMO.model_copy(update=asked))[4]
    assert shlex.split(last.removeprefix("Next: ")) == [
        ".venv/bin/neuron-guard", "serve", "my models/one", "--spec", "out put/guard.safetensors", "--dtype=bfloat16",
    ]  # fmt: skip


@pytest.mark.parametrize("report", [None, Path("report.html")])
def test_nobody_is_asked_to_serve_what_is_refuted_but_to_look_at_it(report: Path | None) -> None:
    last = closing(example_spec(effective=False), DEMO.model_copy(update={"report": report}))[4]
    assert "serve" not in last
    assert last.endswith(".venv/bin/neuron-guard inspect guard.safetensors")
    assert ("report" in last) == (report is not None)


def test_the_command_is_called_by_its_name_where_the_shell_finds_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "neuron-guard"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert closing(example_spec(), DEMO)[4].startswith(f"Next: {shlex.quote(str(script))} serve")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert closing(example_spec(), DEMO)[4].startswith("Next: neuron-guard serve")
    monkeypatch.setattr(sys, "argv", ["/some/where/neuron_guard.py"])
    assert closing(example_spec(), DEMO)[4].startswith(f"Next: {shlex.quote(sys.executable)} -m neuron_guard serve")


UNLUCKY = OffOn(off=whole(0.969, 0.951, 0.987, 1280), on=whole(0.953, 0.931, 0.975, 1280))
COSTLY = OffOn(off=whole(0.125, 0.101, 0.141, 1280), on=whole(0.133, 0.111, 0.142, 1280))


def every_refutation() -> tuple[str, ...]:
    """Each reason that a verdict can have, as the verdict words it."""
    spec = with_held_out(example_spec(), harmful_compliance=UNLUCKY, benign_refusal=COSTLY, random_gates=())
    bad = OffOn(off=whole(0.0, 0.0, 0.1, 9), on=whole(0.5, 0.1, 0.9, 9))
    much = whole(0.2, 0.1, 0.3, 9)
    held_out: HeldOut = spec.evidence.held_out.model_copy(
        update={"harmful_garbled": bad, "benign_garbled": bad, "benign_kl": much, "benign_first_token_kl": much}
    )
    kind = KindEffect.model_construct(kind="arithmetic", intervention="edit", benign=much, harmful=much, index=much)
    return judge_held_out(held_out, 1.0, 0.62, Budget(kl=0.01, refusal=0.001), (kind,)).reasons


@pytest.mark.parametrize("reason", every_refutation())
def test_every_reason_of_a_verdict_fits_the_line_in_plain_words(reason: str) -> None:
    line = closing(refuted(reason, "another"), DEMO)[2]
    assert len(line) <= WIDTH
    assert not re.search(r"\b(gates?|grounds?|neurons? L\d)\b", line)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_five_lines_are_five_lines_in_a_terminal_of_a_hundred_columns(shape: dict[str, Any]) -> None:
    lines = closing(with_held_out(example_spec(**shape), harmful_compliance=UNLUCKY, benign_refusal=COSTLY), DEMO)
    assert all(0 < len(line) <= WIDTH and line.isprintable() for line in lines), lines


@pytest.mark.parametrize("effective", [True, False])
def test_no_word_of_the_field_is_in_them(effective: bool) -> None:
    text = " ".join(closing(example_spec(effective=effective), DEMO)).lower()
    for word in ("gate", "ground", "nats", "kl ", "mediator", "trigger", "held-out", "claim"):
        assert word not in text
