"""torch.compile before and after installing, family by family: no graph of the plain model may run again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from guard.hf import install_edits
from tests.conftest import MIXTURES, TinyModel
from tests.family_table import GUARDED, family_property
from tests.guard.by_hand import PROMPTS
from tests.guard.families.test_table import EDITS, halfway_trigger, logits_of
from tests.guard.family_by_hand import edited_by_hooks


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def compiled_forward(model: Any) -> Any:
    """The tracer decides whether an edit is seen; what a backend makes of the graph is test_hf_compile's affair.

    Mixtures break the graph where they look up which experts a token goes to.
    """
    return torch.compile(model, backend="eager", fullgraph=model.config.model_type not in MIXTURES)


def forward(compiled: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = compiled(PROMPTS, use_cache=False).logits
    return logits


def check_compiled_before(model: Any, layer: int) -> None:
    """An edit of `layer`, and of the trigger before it, comes and goes in a model that was compiled without it."""
    edit, trigger = EDITS[0].model_copy(update={"layer": layer}), halfway_trigger(model, layer)
    compiled = compiled_forward(model)
    with edited_by_hooks(model, [edit], trigger):
        expected = logits_of(model)
    plain = forward(compiled)
    assert not torch.allclose(plain, expected, rtol=1e-3, atol=1e-3)
    with install_edits(model, [edit], trigger):
        torch.testing.assert_close(forward(compiled), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(forward(compiled), plain)


@family_property("compiled", [family for family in GUARDED if family not in MIXTURES])
def test_a_compiled_model_is_guarded_while_an_edit_is_installed(tiny_model: TinyModel, model_type: str) -> None:
    check_compiled_before(tiny_model(model_type, layers=1), 0)


@pytest.mark.slow
@family_property("compiled", MIXTURES)
def test_a_compiled_mixture_is_guarded_while_an_edit_is_installed(tiny_model: TinyModel, model_type: str) -> None:
    check_compiled_before(tiny_model(model_type, layers=2), 1)


@pytest.mark.parametrize("model_type", ["gpt2", "phi3", "opt", "olmo2", "falcon"])
def test_a_guarded_model_is_compiled_with_its_edit(tiny_model: TinyModel, model_type: str) -> None:
    model = tiny_model(model_type, layers=2)
    trigger = halfway_trigger(model, 0)
    with edited_by_hooks(model, EDITS[:1], trigger):
        expected = logits_of(model)
    with install_edits(model, EDITS[:1], trigger):
        compiled = compiled_forward(model)
        torch.testing.assert_close(forward(compiled), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(forward(compiled), logits_of(model))
