"""The self-test on modules like vLLM's: passes where the guard is live, and names what is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import SelfTestError
from guard.vllm.install import EngineGuard, install
from guard.vllm.selftest import check
from tests.guard import fake_vllm
from tests.guard.by_hand import make_trigger
from tests.guard.fake_vllm import D_MODEL
from tests.guard.vllm.test_install import ALONE, STREAM, spec_of

TRIGGER = make_trigger(D_MODEL)


def guarded(trigger: Any = TRIGGER) -> tuple[Any, EngineGuard]:
    model = fake_vllm.LlamaForCausalLM()
    return model, install(model, spec_of(trigger=trigger), ALONE)


def run(model: Any, guard: EngineGuard, dtype: torch.dtype = torch.float32) -> None:
    check(guard, ALONE, dtype, [lambda: model(STREAM)])


@pytest.mark.parametrize("trigger", [None, TRIGGER], ids=["always", "triggered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_live_guard_passes_and_is_left_as_it_was(trigger: Any, dtype: torch.dtype) -> None:
    model, guard = guarded(trigger)
    before = model(STREAM)
    run(model, guard, dtype)
    assert torch.equal(model(STREAM), before)


def test_passes_whose_sums_depend_on_timing_are_told_from_edited_ones() -> None:
    model, guard = guarded()
    generator = torch.Generator().manual_seed(0)

    def noisy() -> Tensor:
        output: Tensor = model(STREAM)
        return output + 1e-4 * (1 + torch.rand(output.shape, generator=generator))

    check(guard, ALONE, torch.float32, [noisy])


def stale_graph(model: Any, _: EngineGuard) -> Callable[[], Tensor]:
    """As if a graph compiled without the guard were run."""
    plain = fake_vllm.LlamaForCausalLM()
    return lambda: plain(STREAM)


def baked_in(model: Any, guard: EngineGuard) -> Callable[[], Tensor]:
    """As if a graph held the edit's numbers themselves."""
    kept = model(STREAM).clone()
    return lambda: kept


def deaf_to_the_trigger(model: Any, guard: EngineGuard) -> Callable[[], Tensor]:
    """As if the guarded layers took all tokens for active."""
    assert guard.trigger is not None
    mask = guard.trigger.mask
    mask.read = lambda tokens: torch.ones(tokens, dtype=torch.bool)  # type: ignore[method-assign]
    return lambda: model(STREAM)


def blind_to_the_threshold(model: Any, guard: EngineGuard) -> Callable[[], Tensor]:
    """As if a graph held the trigger's threshold itself."""
    assert guard.trigger is not None
    readout: Any = guard.trigger.readout
    readout.forward = lambda stream: torch.ones(stream.shape[0], dtype=torch.bool)
    return lambda: model(STREAM)


def not_a_number(model: Any, guard: EngineGuard) -> Callable[[], Tensor]:
    """As if nothing could be seen."""
    return lambda: model(STREAM) * torch.nan


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (stale_graph, "layer 2, rank 0: an extreme setting of the edit does not change the logits"),
        (baked_in, "layer 2, rank 0: an extreme setting of the edit does not change the logits"),
        (deaf_to_the_trigger, "layer 2: the edit changes neurons outside the gate, or tokens that are not active"),
        (blind_to_the_threshold, "layer 2: tokens are edited although the trigger is not active"),
        (not_a_number, "an extreme setting of the edit does not change the logits"),
    ],
)
def test_an_engine_that_does_not_follow_the_edit_fails(broken: Any, message: str) -> None:
    model, guard = guarded()
    passes = [broken(model, guard)]
    with pytest.raises(SelfTestError, match=message):
        check(guard, ALONE, torch.float32, passes)


def test_a_failure_puts_the_edit_back() -> None:
    model, guard = guarded()
    with pytest.raises(SelfTestError):
        check(guard, ALONE, torch.float32, [stale_graph(model, guard)])
    run(model, guard)


def test_an_activation_other_than_the_models_own_is_found() -> None:
    model, guard = guarded()
    layer: Any = guard.layers[0]
    layer.module.activation = "gelu"
    with pytest.raises(SelfTestError, match="not the one that the model had"):
        run(model, guard)
