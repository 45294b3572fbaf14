"""Controls for position and size, on models where one module is known to carry the lean, and on an organism."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from calibration.analyses import controls
from calibration.analyses.controls import Controls, _grounds
from calibration.analyses.patches import module_effects
from calibration.analyses.unit_groups import Group, UnitGroup, measured_group
from calibration.analyses.units import UnitKind, places_of
from calibration.effects.outcome import outcome, readout_logits
from calibration.runs.interventions import Mediator
from calibration.runs.resume import record
from guard.spec.claim import claim
from tests.calibration.analyses.built_models import built, pairs
from tests.calibration.planted_subject import planted_subject


def group(name: UnitGroup, layers: range, *kinds: UnitKind, carrier: int, mlp: int | None) -> Group:
    model = built(carrier=carrier, mlp=mlp)
    plain, harm = (record(model, batch, 0) for batch in pairs())
    return measured_group(name, [harm], [plain], places_of(layers, *kinds), 2, torch.Generator().manual_seed(0))


def said(one: Group, other: Group) -> str:
    return claim("x", "x", _grounds(one, other, 0, torch.Generator().manual_seed(0))).said


def late_or_early(*, carrier: int, mlp: int | None) -> str:
    early = group("early", range(2), "attention", "mlp", carrier=carrier, mlp=mlp)
    late = group("late", range(2, 4), "attention", "mlp", carrier=carrier, mlp=mlp)
    return said(late, early)


def mlp_or_attention(*, carrier: int, mlp: int | None) -> str:
    of_mlp = group("MLP", range(4), "mlp", carrier=carrier, mlp=mlp)
    of_attention = group("attention", range(4), "attention", carrier=carrier, mlp=mlp)
    return said(of_mlp, of_attention)


@pytest.mark.parametrize(("carrier", "mlp"), [(0, 0), (0, 1), (1, 1), (0, None), (1, None)])
def test_what_an_early_module_alone_carries_is_never_called_late(carrier: int, mlp: int | None) -> None:
    assert late_or_early(carrier=carrier, mlp=mlp) == "no"


@pytest.mark.parametrize(("carrier", "mlp"), [(2, 2), (2, 3), (3, None)])
def test_what_a_late_module_alone_carries_is_called_late(carrier: int, mlp: int | None) -> None:
    assert late_or_early(carrier=carrier, mlp=mlp) == "yes"


@pytest.mark.parametrize("carrier", [0, 3])
def test_what_attention_writes_itself_is_never_said_of_mlps(carrier: int) -> None:
    assert mlp_or_attention(carrier=carrier, mlp=None) == "no"


def test_units_are_measured_on_requests_that_did_not_choose_them() -> None:
    found = group("late", range(2, 4), "attention", "mlp", carrier=2, mlp=3)
    model, (_, harm) = built(carrier=2, mlp=3), pairs()
    base = outcome(readout_logits(model, harm), harm)
    assert found.effect.shape == base.shape
    assert float(found.effect.mean()) > float(found.random_units.mean()) + 0.1


def test_scaling_moves_to_their_own_norm_changes_nothing() -> None:
    found = group("late", range(2, 4), "mlp", carrier=2, mlp=3)
    effect, _ = found.scaled(found.norm, torch.Generator().manual_seed(0))
    torch.testing.assert_close(effect, found.effect)
    nothing, random = found.scaled(torch.zeros_like(found.norm), torch.Generator().manual_seed(0))
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-5, rtol=0)
    torch.testing.assert_close(random, torch.zeros_like(random), atol=1e-5, rtol=0)


def test_moves_are_scaled_to_an_impact_that_can_be_had_else_near_it_and_to_their_own_not_at_all() -> None:
    found = group("late", range(2, 4), "mlp", carrier=2, mlp=3)
    effect, reached = found.at_impact(found.impact)
    torch.testing.assert_close(effect, found.effect)
    torch.testing.assert_close(reached, found.impact)
    _, reached = found.at_impact(0.5 * found.impact)
    torch.testing.assert_close(reached, 0.5 * found.impact, rtol=0.1, atol=0.0)
    _, reached = found.at_impact(1e6 * found.impact)
    assert bool((reached >= found.impact).all())


@dataclass(frozen=True)
class Saturating:
    """A group whose effect is that of a slope at first and never more than `most`, at `size` on every scale."""

    name: str
    slope: float
    most: float
    at: float
    size: int = 8

    def does(self, at: Tensor) -> Tensor:
        return self.most * (1 - (-self.slope * at / self.most).exp()) * (1 + 0.01 * torch.arange(len(at)))

    @property
    def norm(self) -> Tensor:
        return torch.full((40,), self.at, dtype=torch.float64)

    @property
    def impact(self) -> Tensor:
        return self.norm

    @property
    def effect(self) -> Tensor:
        return self.does(self.norm)

    @property
    def random_direction(self) -> Tensor:
        return 0 * self.norm

    def scaled(self, norm: Tensor, _: object) -> tuple[Tensor, Tensor]:
        return self.does(norm), 0 * norm

    def at_impact(self, impact: Tensor) -> tuple[Tensor, Tensor]:
        return self.does(impact), impact


def test_what_hardly_acts_does_not_win_by_its_slope_and_what_acts_more_at_equal_impact_does() -> None:
    acting, hardly = Saturating("late", slope=1.0, most=4.0, at=30.0), Saturating("early", slope=2.0, most=0.1, at=0.01)
    better = Saturating("early", slope=2.0, most=8.0, at=0.01)
    assert said(acting, hardly) == "yes"  # type: ignore[arg-type]
    assert said(acting, better) == "no"  # type: ignore[arg-type]


def test_a_module_that_writes_the_same_in_both_runs_has_no_effect_at_any_norm() -> None:
    reference, harmful = pairs()
    found = module_effects(built(carrier=1, mlp=2), reference, harmful, torch.Generator().manual_seed(0))
    idle, carrying = found[Mediator("mlp", 3)], found[Mediator("mlp", 2)]
    for values in (idle.effect, idle.equal_norm, idle.random_direction, idle.norm, idle.impact):
        torch.testing.assert_close(values, torch.zeros_like(values))
    assert float(carrying.effect.mean()) > 0.5
    assert float(carrying.effect.mean()) > 2 * float(carrying.random_direction.mean())


@cache
def measured() -> tuple[Controls, int]:
    """The controls of the organism, and how far the progress went."""
    done = list[int]()
    return controls.measure(planted_subject("two-layer"), done.append), sum(done)


def test_a_planted_late_gate_survives_every_control_and_the_report_tells_it() -> None:
    found, done = measured()
    assert done == controls.total(planted_subject("two-layer"))
    assert {claim.name: claim.said for claim in found.claims} == {"late": "yes", "mlp": "yes"}
    assert {(m.layer, m.kind) for m in found.modules} == {
        (i, k) for i in range(6) for k in ("layer", "attention", "mlp")
    }
    section = controls.describe(found)
    assert all(claim.statement in section.paragraphs[0] for claim in found.claims)
    assert [len(plot.rows) for plot in section.plots] == [4, 18]
