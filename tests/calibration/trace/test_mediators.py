"""Effects by layer, module and token, against patches written by hand, in float64, on every family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.effects.outcome import outcome, readout_logits
from calibration.runs.interventions import Mediator, patched_outcome
from calibration.trace import cells
from calibration.trace.cells import Copies, strongest
from calibration.trace.document import VIEWS
from calibration.trace.mediators import Mediators
from tests.calibration.late_models import base_outcome
from tests.calibration.trace.subjects import (
    LAYERS,
    LONGER,
    PROMPT,
    SAME_LENGTH,
    SHORTER,
    looked_at,
    mediators,
)
from tests.conftest import FAMILIES

families = pytest.mark.parametrize("model_type", FAMILIES)


SOME = ("llama", "gemma2", "opt", "falcon")


def patched_by_hand(model: nn.Module, module: nn.Module, batch: Any, change: Callable[[Tensor], Tensor]) -> float:
    """Y with a module's output changed, by a plain hook of torch."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return float(outcome(readout_logits(model, batch), batch))
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["self_attn", "mlp", ""])
def test_a_cell_is_what_a_patch_by_hand_takes_from_y(name: str) -> None:
    found, gradients, _ = looked_at()
    view = {"self_attn": "attention", "mlp": "mlp", "": "layer"}[name]
    measured = next(each for each in mediators().maps() if each.view == view)
    layers: Any = found.model.get_submodule("model.layers")
    layer = layers[2]
    module = layer.get_submodule(name)
    for column in (0, 4, 8):
        mean = gradients.values[view, 2][0, 1 : len(PROMPT)].mean(0)  # type: ignore[index]

        def change(stream: Tensor, column: int = column, mean: Tensor = mean) -> Tensor:
            changed = stream.clone()
            changed[:, column] = mean
            return changed

        after = patched_by_hand(found.model, module, found.batch, change)
        assert measured.effects[2][column] == pytest.approx(gradients.outcome - after, abs=1e-9)


@pytest.mark.parametrize(
    ("model_type", "other"),
    [
        *((name, None) for name in FAMILIES),
        *((name, LONGER) for name in SOME),
        *((name, SAME_LENGTH) for name in SOME),
    ],
    ids=lambda value: value if isinstance(value, str) else f"against {len(value or ())}",
)
def test_cells_are_full_patched_runs_in_every_family(model_type: str, other: tuple[int, ...] | None) -> None:
    found, gradients, _ = looked_at(model_type, other)
    measured = mediators(model_type, other)
    column = found.columns[-3]
    for view in measured.maps():
        values = measured.replacement(view.view, 1, [column])
        mediator = Mediator(view.view, 1, tokens=(column,))
        after = float(patched_outcome(found.model, found.batch, {mediator: values}))
        assert view.run[1][-3]
        assert view.effects[1][-3] == pytest.approx(gradients.outcome - after, abs=1e-8)


def test_a_linear_estimate_stands_where_a_cell_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found, gradients, copies = looked_at()
    monkeypatch.setattr("calibration.trace.mediators.MOST_CELLS", 5)
    partly = Mediators(found, gradients, None, copies)
    views = partly.maps()
    assert sum(sum(row) for view in views for row in view.run) == 5
    exact = {view.view: view for view in mediators().maps()}
    for view in views:
        for layer in range(LAYERS):
            columns = list(found.columns)
            linear = gradients.linear(view.view, layer, partly.replacement(view.view, layer, columns), columns)
            for column, (effect, run) in enumerate(zip(view.effects[layer], view.run[layer], strict=True)):
                expected = exact[view.view].effects[layer][column] if run else float(linear[column].sum())
                assert effect == pytest.approx(expected, abs=1e-9)


def test_the_number_of_runs_made_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mediators().maps()
    monkeypatch.setattr(cells, "TOKENS_AT_ONCE", 70)
    found, gradients, copies = looked_at()
    assert copies.most < 7
    pieces = Mediators(found, gradients, None, Copies(copies.runs)).maps()
    for before, after in zip(whole, pieces, strict=True):
        for row, other in zip(before.effects, after.effects, strict=True):
            assert row == pytest.approx(other, abs=1e-9)


def test_columns_that_do_not_line_up_have_no_effect_rather_than_none() -> None:
    views = mediators(other=SHORTER).maps()
    assert [effect is None for effect in views[0].effects[0]] == [True] * 4 + [False] * 6
    same = mediators(other=SAME_LENGTH).maps()
    assert all(effect is not None for view in same for row in view.effects for effect in row)


def test_a_prompt_against_itself_has_no_effects() -> None:
    for view in mediators(other=PROMPT).maps():
        assert [abs(effect or 0.0) < 1e-9 for row in view.effects for effect in row].count(False) == 0


def test_the_strongest_entries_are_chosen() -> None:
    chosen = strongest(torch.tensor([[0.1, -5.0], [2.0, 0.0]]), 2)
    assert chosen.tolist() == [[False, True], [True, False]]
    assert strongest(torch.zeros(3), 9).all()


def test_without_another_prompt_modules_take_their_mean_everywhere() -> None:
    found, gradients, _ = looked_at()
    effects = {(each.layer, each.kind): each for each in mediators().modules()}
    assert len(effects) == 2 * LAYERS
    layers: Any = found.model.get_submodule("model.layers")
    layer = layers[1]
    mean = gradients.values["mlp", 1][0, 1 : len(PROMPT)].mean(0)

    def change(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[:, : found.batch.edited.stop] = mean
        return changed

    after = patched_by_hand(found.model, layer.mlp, found.batch, change)
    assert effects[1, "mlp"].removed == pytest.approx(gradients.outcome - after, abs=1e-9)
    assert effects[1, "mlp"].brought is None


@pytest.mark.parametrize("other", [SAME_LENGTH, SHORTER, LONGER])
def test_with_another_prompt_the_last_layer_carries_the_total_effect_both_ways(other: tuple[int, ...]) -> None:
    found, gradients, _ = looked_at(other=other)
    assert found.reference is not None
    total = gradients.outcome - float(base_outcome(found.model, found.reference))
    last = {each.kind: each for each in mediators(other=other).modules() if each.layer == LAYERS - 1}
    assert set(last) == set(VIEWS)
    assert last["layer"].removed == pytest.approx(total, abs=1e-9)
    assert last["layer"].brought == pytest.approx(total, abs=1e-9)
