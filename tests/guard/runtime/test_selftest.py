"""The self-test finds an edit that does not act, in each of the ways in which one can fail to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import SelfTestError
from guard.hf import Installation, install_edits
from guard.ops import edit_neurons
from guard.runtime import selftest
from guard.runtime.buffers import EditBuffers
from guard.runtime.trigger import TriggerReadout
from guard.spec.edit_spec import Trigger
from tests.conftest import TinyModel
from tests.guard.by_hand import EDITS, make_trigger

with_and_without_trigger = pytest.mark.parametrize("trigger", [None, make_trigger()], ids=["always", "trigger"])


def run_self_test(
    model: Any, trigger: Trigger | None = None, sabotage: Callable[[Installation], None] | None = None
) -> None:
    plain = selftest.probe_logits(model)
    with install_edits(model, EDITS, trigger) as installation:
        if sabotage is not None:
            sabotage(installation)
        selftest.check(model, installation.guarded, installation.readout, plain)


@with_and_without_trigger
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_edit_that_acts_passes(
    tiny_model: TinyModel, model_type: str, dtype: torch.dtype, trigger: Trigger | None
) -> None:
    run_self_test(tiny_model(model_type, dtype=dtype), trigger)


def test_a_model_with_dropout_passes_while_it_trains(tiny_model: TinyModel) -> None:
    run_self_test(tiny_model(attention_dropout=0.5).train(), make_trigger())


def test_a_model_compiled_in_place_passes_without_compiling(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()

    def backend(*_: Any) -> Any:
        raise AssertionError("the self-test compiled the model")

    model.compile(backend=backend)
    run_self_test(model, make_trigger())


@with_and_without_trigger
def test_an_mlp_that_goes_round_its_down_projection_is_found(tiny_model: TinyModel, trigger: Trigger | None) -> None:
    model: Any = tiny_model()
    mlp = model.model.layers[2].mlp

    def forward(x: Tensor) -> Tensor:
        h = torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
        return torch.nn.functional.linear(h, mlp.down_proj.weight)

    mlp.forward = forward
    with pytest.raises(SelfTestError, match="not reached"):
        run_self_test(model, trigger)


def altered(change: Callable[[EditBuffers, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """EditBuffers.forward followed by `change`."""

    def forward(edit: EditBuffers, h: Tensor, active: Tensor | None = None) -> Tensor:
        return change(edit, h, edit_neurons(h, edit.neurons, edit.scale, edit.lower, edit.upper, active))

    return forward


def one_neuron_too_many(edit: EditBuffers, _: Tensor, edited: Tensor) -> Tensor:
    outside = next(j for j in range(edit.d_ff) if j not in edit.neurons.tolist())
    return edited.index_fill(-1, torch.tensor(outside), 0.0)


def no_edit(_edit: EditBuffers, h: Tensor, _edited: Tensor) -> Tensor:
    return h.clone()


def first_token_only(_edit: EditBuffers, h: Tensor, edited: Tensor) -> Tensor:
    return torch.cat([edited[:, :1], h[:, 1:]], dim=1)


def half_the_value(edit: EditBuffers, _: Tensor, edited: Tensor) -> Tensor:
    """Stays within the bounds of a one-sided clamp, and is not the edit."""
    unbounded = edit.neurons[edit.lower.isinf() | edit.upper.isinf()].long()
    return edited.index_copy(-1, unbounded, edited[..., unbounded] / 2)


@with_and_without_trigger
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_neuron_too_many, "outside the gate"),
        (no_edit, "outside its bounds"),
        (first_token_only, "outside its bounds"),
        (half_the_value, "not those of the definition"),
    ],
)
def test_a_wrong_edit_is_found(
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[EditBuffers, Tensor, Tensor], Tensor],
    message: str,
    trigger: Trigger | None,
) -> None:
    monkeypatch.setattr(EditBuffers, "forward", altered(change))
    with pytest.raises(SelfTestError, match=message):
        run_self_test(tiny_model(), trigger)


@pytest.mark.parametrize("stuck", [True, False])
def test_a_trigger_that_ignores_its_threshold_is_found(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    def forward(_: TriggerReadout, residual: Tensor) -> Tensor:
        return torch.full(residual.shape[:-1], stuck)

    monkeypatch.setattr(TriggerReadout, "forward", forward)
    with pytest.raises(SelfTestError, match="threshold"):
        run_self_test(tiny_model(), make_trigger())


def test_a_gate_that_reaches_nothing_is_found(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[:, list(EDITS[1].neurons)] = 0.0
    with pytest.raises(SelfTestError, match="extreme setting"):
        run_self_test(model)


def test_a_guard_that_changes_an_idle_model_is_found(tiny_model: TinyModel) -> None:
    def double_the_norm(installation: Installation) -> None:
        with torch.no_grad():
            installation.guarded[0].weight.mul_(2)

    with pytest.raises(SelfTestError, match="no token is active"):
        run_self_test(tiny_model(), make_trigger(), double_the_norm)


def test_afterwards_everything_is_as_it_was_installed(tiny_model: TinyModel) -> None:
    model = tiny_model()
    plain = selftest.probe_logits(model)
    with install_edits(model, EDITS, make_trigger(threshold=0.125)) as installation:
        modules = list(model.modules())
        selftest.check(model, installation.guarded, installation.readout, plain)
        assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
        assert installation.readout is not None
        assert installation.readout.threshold.item() == 0.125
