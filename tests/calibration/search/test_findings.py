"""How the search's parts are put together: which gate is taken, what is kept, what is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from calibration.evidence.verdict import RANDOM_GATES
from calibration.search import findings as finding
from calibration.search.bounds import Bounds, Budget, Measured, Searched, build_edits
from calibration.search.findings import Settings, best_gate, find
from calibration.search.gate import Gate
from calibration.search.selection import Member
from calibration.search.trigger import FittedTrigger
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.calibration.organisms import late, material, organism

BUDGET = Budget(kl=0.01, refusal=0.02)
TRIGGER = Trigger(layer=1, threshold=0.0, direction=(1.0,), false_trigger_rate=0.01, calibration_size=99)
MEMBER = Member(layer=5, neuron=7, carries="compliance", effect=1.0)


def a_gate(harm: float, kl: float = 0.001, trigger: Trigger | None = None) -> Gate:
    bounds = Bounds(family="scale", strength=1.0, amplification=1.0)
    searched = Searched(bounds=bounds, edits=(), measured=Measured(harm, 0.0, kl, kl, 0.0), trials=())
    return Gate(members=(MEMBER,), searched=searched, trigger=trigger)


def chosen(mode: Any, plain: Gate, conditional: Gate, unspecific: tuple[Gate, ...] = ()) -> Gate:
    """What `best_gate` takes where the two searches find these two gates, of which some are not specific."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finding, "find_gate", lambda _, trigger, *__, **___: conditional if trigger else plain)
        patch.setattr(finding, "find_trigger", lambda *_, **__: FittedTrigger(TRIGGER, 1.0, 1.0))
        patch.setattr(finding, "bounds_search", lambda *_, **__: None)
        patch.setattr(finding, "without_unspecific", lambda gate, *_, **__: gate)
        patch.setattr(finding, "unspecific_kinds", lambda gate, *_, **__: ("a kind",) if gate in unspecific else ())
        return best_gate(None, None, Settings(trigger=mode, budget=BUDGET))  # type: ignore[arg-type]


@pytest.mark.parametrize("harms", [(0.5, 3.0), (3.0, 0.5)])
def test_a_trigger_that_is_always_wanted_is_always_there_and_one_never_wanted_never(harms: tuple[float, float]) -> None:
    plain, conditional = a_gate(harms[0]), a_gate(harms[1], trigger=TRIGGER)
    assert chosen("always", plain, conditional) == conditional
    assert chosen("never", plain, conditional) == plain


def test_auto_takes_the_gate_with_the_lower_objective() -> None:
    better, worse = a_gate(1.0, trigger=TRIGGER), a_gate(4.0)
    assert chosen("auto", worse, better) == better
    assert chosen("auto", a_gate(1.0), a_gate(4.0, trigger=TRIGGER)) == a_gate(1.0)


def test_auto_takes_any_gate_rather_than_none_and_one_in_the_budget_rather_than_one_beyond() -> None:
    conditional = a_gate(4.0, trigger=TRIGGER)
    assert chosen("auto", Gate(), conditional) == conditional
    assert chosen("auto", a_gate(0.0, kl=1.0), conditional) == conditional
    assert chosen("auto", a_gate(4.0), a_gate(0.5, kl=1.0, trigger=TRIGGER)) == a_gate(4.0)


def test_auto_looks_for_no_trigger_where_next_to_no_lean_is_left_without_one() -> None:
    satisfied = a_gate(0.0)
    assert chosen("auto", satisfied, a_gate(0.0, kl=0.0, trigger=TRIGGER)) == satisfied


def test_auto_puts_a_gate_that_is_not_specific_behind_a_trigger_where_that_makes_it_so() -> None:
    plain, conditional = a_gate(0.0), a_gate(0.5, trigger=TRIGGER)
    assert chosen("auto", plain, conditional, unspecific=(plain,)) == conditional
    assert chosen("auto", plain, conditional, unspecific=(plain, conditional)) == plain
    assert chosen("never", plain, conditional, unspecific=(plain,)) == plain


class Watched:
    """A keeper that remembers which stages were asked for, and progress bars that remember theirs."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.bars: dict[str, tuple[int | None, list[int]]] = {}
        self.kept: dict[str, BaseModel] = {}

    def keep(self, name: str, kind: type[Any], compute: Callable[[], Any], /) -> Any:
        self.stages.append(name)
        if name not in self.kept:
            self.kept[name] = kind.model_validate_json(compute().model_dump_json())
        return self.kept[name]

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        steps: list[int] = []
        self.bars[title] = (total, steps)
        yield steps.append


@pytest.fixture(scope="module")
def found() -> tuple[Watched, finding.Findings]:
    """Findings on the two-layer organism, with a short search."""
    watched = Watched()
    model, tokenizer = organism("two-layer")
    settings = Settings(trigger="never", budget=BUDGET, trials=5, max_new_tokens=14, batch_size=18)
    findings = find(model, tokenizer, material("two-layer"), settings, keep=watched.keep, progress=watched.progress)
    return watched, findings


def test_every_stage_is_kept_in_order(found: tuple[Watched, finding.Findings]) -> None:
    watched, findings = found
    stages, parts = ["mediation", "gate", "neurons", "examined"], ("neurons-unconditional-", "bounds-")
    assert [stage for stage in watched.stages if not stage.startswith(parts)] == stages
    results = [findings.mediation, findings.gate, findings.neurons, findings.examined]
    assert [watched.kept[stage] for stage in stages] == results


def test_a_gate_is_put_together_from_parts_that_are_kept_before_it(found: tuple[Watched, finding.Findings]) -> None:
    stages = found[0].stages
    within = stages[stages.index("gate") + 1 : stages.index("neurons")]
    assert [part for part in within if not part.startswith("bounds-")] == [
        "neurons-unconditional-zero",
        "neurons-unconditional-mean",
    ]
    assert within[1].startswith("bounds-")


def test_bars_with_a_total_reach_it(found: tuple[Watched, finding.Findings]) -> None:
    totals = {title: (total, sum(steps)) for title, (total, steps) in found[0].bars.items() if total is not None}
    assert totals
    assert all(total == reached for total, reached in totals.values())


def test_the_findings_belong_to_one_gate(found: tuple[Watched, finding.Findings]) -> None:
    _, findings = found
    assert [(n.layer, n.neuron) for n in findings.neurons.neurons] == [
        (member.layer, member.neuron) for member in findings.gate.members
    ]
    assert findings.neurons.set_sizes[-1].size == len(findings.gate.members)
    assert findings.examined.verdict.outcome == "effective"


def test_the_gate_is_judged_against_random_gates_under_its_own_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = late("two-layer")
    gate = a_gate(1.0)
    handed: list[tuple[LayerEdit, ...]] = finding._random_edits(gate, ready, 0)
    assert gate.searched is not None
    assert len(handed) == RANDOM_GATES
    for edits in handed:
        (edit,) = edits
        (neuron,) = edit.neurons
        assert (edit.layer, neuron) != (MEMBER.layer, MEMBER.neuron)
        member = Member(layer=edit.layer, neuron=neuron, carries="compliance", effect=0.0)
        assert edits == build_edits([member], ready.activations, gate.searched.bounds)
    assert finding._random_edits(Gate(), ready, 0) == []


def test_finished_stages_are_not_computed_again(
    found: tuple[Watched, finding.Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, findings = found
    for name in ("mediation_evidence", "find_gate", "neuron_evidence", "examine"):
        monkeypatch.delattr(finding, name)
    model, tokenizer = organism("two-layer")
    settings = Settings(trigger="never", budget=BUDGET, trials=5, max_new_tokens=14, batch_size=18)
    again = find(model, tokenizer, material("two-layer"), settings, keep=watched.keep)
    assert again == findings


def test_where_no_neuron_helps_the_finding_is_an_empty_gate_that_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "find_gate", lambda *_, **__: Gate())
    model, tokenizer = organism("two-layer")
    settings = Settings(trigger="never", budget=BUDGET, max_new_tokens=8, batch_size=18)
    findings = find(model, tokenizer, material("two-layer"), settings)
    assert findings.gate == Gate()
    assert findings.neurons.neurons == ()
    assert findings.examined.verdict.outcome == "refuted"
