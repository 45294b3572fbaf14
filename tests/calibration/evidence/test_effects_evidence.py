"""The evidence of a gate, against its edits installed one by one."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch

from calibration.effects.outcome import outcome, readout_logits
from calibration.evidence.effects_evidence import mediation_evidence, neuron_evidence, set_sizes
from calibration.search.bounds import Bounds, Measured, Searched, build_edits
from calibration.search.gate import Gate
from calibration.search.selection import Member
from calibration.search.trigger import entering_states
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.calibration.organisms import late, material, organism

MEMBERS = tuple(
    Member(layer=layer, neuron=neuron, carries="compliance", effect=1.0)
    for layer, neuron in ((4, 5), (5, 7), (5, 89), (4, 17), (5, 133))
)
BOUNDS = Bounds(family="benign_mean", strength=1.0, amplification=1.0)


@cache
def trigger() -> Trigger:
    """A trigger that is active on about half of all tokens."""
    direction = torch.randn(96, generator=torch.Generator().manual_seed(0))
    batches = material("two-layer").calibration.harmful
    scores = entering_states(organism("two-layer")[0], batches, [1])[1].states @ direction
    return Trigger(
        layer=1,
        threshold=float(scores.median()) + 1e-4,
        direction=tuple(direction.tolist()),
        false_trigger_rate=0.5,
        calibration_size=9,
    )


def gate(members: Sequence[Member] = MEMBERS, *, triggered: bool = False) -> Gate:
    edits = build_edits(members, late("two-layer").activations, BOUNDS)
    searched = Searched(bounds=BOUNDS, edits=edits, measured=Measured(0.0, 0.0, 0.0, 0.0, 0.0), trials=())
    return Gate(members=tuple(members), searched=searched, trigger=trigger() if triggered else None)


def mean_outcome(members: Sequence[Member], *, triggered: bool = False) -> float:
    """Mean Y of the harmful calibration requests with the members' own edits installed, by full forward passes."""
    model = organism("two-layer")[0]
    edits: tuple[LayerEdit, ...] = build_edits(members, late("two-layer").activations, BOUNDS)
    found = []
    for batch in material("two-layer").calibration.harmful:
        with torch.inference_mode():
            if edits:
                with install_edits(model, edits, trigger() if triggered else None):
                    logits = readout_logits(model, batch)
            else:
                logits = readout_logits(model, batch)
        found.append(outcome(logits, batch))
    return float(torch.cat(found).double().mean())


@pytest.mark.parametrize("triggered", [False, True])
def test_first_in_is_the_effect_alone_and_last_in_that_on_top_of_the_others(triggered: bool) -> None:
    found = neuron_evidence(gate(triggered=triggered), late("two-layer"), seed=0)
    none, every = mean_outcome((), triggered=triggered), mean_outcome(MEMBERS, triggered=triggered)
    for place, (member, evidence) in enumerate(zip(MEMBERS, found, strict=True)):
        assert (evidence.layer, evidence.neuron) == (member.layer, member.neuron)
        others = MEMBERS[:place] + MEMBERS[place + 1 :]
        alone = none - mean_outcome([member], triggered=triggered)
        last = mean_outcome(others, triggered=triggered) - every
        assert evidence.first_in.value == pytest.approx(alone, abs=1e-4)
        assert evidence.last_in.value == pytest.approx(last, abs=1e-4)
        assert evidence.first_in.low <= evidence.first_in.value <= evidence.first_in.high


def test_set_sizes_are_powers_of_two_and_the_whole_with_their_joint_effects() -> None:
    found = set_sizes(gate(), late("two-layer"))
    assert [each.size for each in found] == [1, 2, 4, 5]
    none = mean_outcome(())
    for each in found:
        assert each.effect == pytest.approx(none - mean_outcome(MEMBERS[: each.size]), abs=1e-4)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4])])
def test_no_size_is_named_twice(count: int, sizes: list[int]) -> None:
    assert [each.size for each in set_sizes(gate(MEMBERS[:count]), late("two-layer"))] == sizes


def test_planted_neurons_show_and_one_that_does_nothing_does_not() -> None:
    model = organism("two-layer")[0]
    column = model.get_parameter("model.layers.5.mlp.down_proj.weight").detach()
    silent = Member(layer=5, neuron=int(column.norm(dim=0).argmin()), carries="compliance", effect=0.0)
    found = neuron_evidence(gate((*MEMBERS, silent)), late("two-layer"), seed=0)
    assert abs(found[-1].first_in.value) < 0.1
    assert max(each.first_in.value for each in found[:-1]) > 10 * abs(found[-1].first_in.value)
    assert min(each.p_value for each in found[:-1]) < 0.01


def test_p_values_are_adjusted_over_the_neurons_and_the_seed_decides() -> None:
    ready = late("two-layer")
    assert neuron_evidence(gate(), ready, seed=1) == neuron_evidence(gate(), ready, seed=1)
    assert all(0 < each.p_value <= 1 for each in neuron_evidence(gate(), ready, seed=1))


def test_an_empty_gate_has_no_evidence() -> None:
    assert neuron_evidence(Gate(), late("two-layer"), seed=0) == ()
    assert set_sizes(Gate(), late("two-layer")) == ()


def test_progress_is_told_of_every_neuron() -> None:
    done: list[int] = []
    neuron_evidence(gate(), late("two-layer"), seed=0, progress=done.append)
    assert sum(done) == len(MEMBERS)


def test_mediation_tells_both_outcomes_their_difference_and_every_layer() -> None:
    model = organism("two-layer")[0]
    split = material("two-layer").calibration
    found = mediation_evidence(model, split, seed=0)
    assert found.outcome_harmful.value == pytest.approx(mean_outcome(()), abs=1e-5)
    difference = found.outcome_harmful.value - found.outcome_reference.value
    assert found.total_effect.value == pytest.approx(difference, abs=1e-4)
    kinds = {(each.kind, each.layer) for each in found.mediators}
    assert kinds == {(kind, layer) for kind in ("layer", "attention", "mlp") for layer in range(6)}
    assert len({(each.kind, each.layer, each.tokens) for each in found.mediators}) == len(found.mediators)


def test_the_last_layer_s_output_carries_the_whole_effect_both_ways() -> None:
    found = mediation_evidence(organism("two-layer")[0], material("two-layer").calibration, seed=0)
    (last,) = [m for m in found.mediators if (m.layer, m.kind, m.tokens) == (5, "layer", found.mediators[0].tokens)]
    assert last.natural_indirect_effect.value == pytest.approx(found.total_effect.value, abs=1e-3)
    assert last.total_natural_indirect_effect.value == pytest.approx(found.total_effect.value, abs=1e-3)
