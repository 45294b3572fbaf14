"""Every family against an edit written by hand: which neurons, what the model says, with and without trigger."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.families.table import FAMILIES as FAMILY_TABLE
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.conftest import TinyModel
from tests.family_table import GUARDED, family_property
from tests.guard.by_hand import PROMPTS, greedy, make_trigger
from tests.guard.family_by_hand import RECIPES, edited_by_hooks, module_in, neurons_by_hand

# What a model type does in more than one way: both blocks read the residual stream at once, or one after the other.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("falcon", {"parallel_attn": False}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"alibi": True}),
    ("falcon", {"multi_query": True, "bias": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("stablelm", {"use_parallel_residual": True}),
    ("stablelm", {"qk_layernorm": True}),
    ("cohere", {"use_qk_norm": True}),
    ("opt", {"enable_bias": False}),
    ("llama", {"mlp_bias": True}),
    ("qwen2_moe", {"mlp_only_layers": []}),
    ("deepseek_v3", {"first_k_dense_replace": 0}),
]
# Strong enough to be heard through Gemma2's norms and Bloom's wide MLP.
EDITS = (
    LayerEdit(layer=1, neurons=(3, 7, 20), scale=(1.0, -2.0, 1.0), lower=(40.0, -0.5, -30.0), upper=(40.0, 0.5, -30.0)),
    LayerEdit(layer=2, neurons=(0, 36), scale=(0.0, 5.0), lower=(-torch.inf, 20.0), upper=(torch.inf, torch.inf)),
)
PADDED = torch.cat([torch.zeros(2, 3, dtype=torch.long), PROMPTS], dim=1)
MASK = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(PROMPTS)], dim=1)


@contextmanager
def recorded(*modules: Any) -> Iterator[list[Tensor]]:
    """The first argument of each call of `modules`, in order."""
    seen: list[Tensor] = []
    handles = [module.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def logits_of(model: Any, tokens: Tensor = PROMPTS, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(tokens, attention_mask=mask, use_cache=False).logits
    return logits


def halfway_trigger(model: Any, layer: int) -> Trigger:
    """A trigger at `layer` that is active on about half of the tokens of PROMPTS, far from the scores of any."""
    trigger = make_trigger(model.get_input_embeddings().weight.shape[1], layer=layer)
    with (
        torch.no_grad(),
        recorded(model.get_submodule(f"{RECIPES[model.config.model_type].layers}.{layer}")) as streams,
    ):
        model(PROMPTS, use_cache=False)
    scores = (streams[0].double() @ torch.tensor(trigger.direction, dtype=torch.float64)).flatten().sort().values
    below = int(scores.diff()[2:-2].argmax()) + 2
    return trigger.model_copy(update={"threshold": scores[below : below + 2].mean().float().item()})


def test_every_family_of_the_table_is_tested() -> None:
    assert set(GUARDED) == set(FAMILY_TABLE) == set(RECIPES)


@family_property("neurons")
def test_the_edited_neurons_are_those_that_the_weights_make(tiny_model: TinyModel, model_type: str) -> None:
    model: Any = tiny_model(model_type, dtype=torch.float64)
    recipe = RECIPES[model_type]
    for edit in EDITS:
        first, down = (
            module_in(model, edit.layer, name) for name in (recipe.at(edit.layer).inputs[0], recipe.at(edit.layer).down)
        )
        with torch.no_grad(), recorded(first) as normed, recorded(down) as plain:
            model(PROMPTS, use_cache=False)
            with install_edits(model, [edit]) as installation, recorded(installation.guarded[0].edit) as arriving:
                model(PROMPTS, use_cache=False)
        expected = neurons_by_hand(model, edit.layer, normed[0])
        torch.testing.assert_close(plain[0], expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(arriving[0], plain[0]), (
            "the guard edits something else than what reaches the down projection"
        )
        assert installation.guarded == []


def check_against_hand(model: Any, trigger: Trigger | None) -> None:
    """In float32: with float64, transformers' eager attention makes NaN of masked rows."""

    def behaviour() -> list[Tensor]:
        return [
            logits_of(model),
            logits_of(model, PADDED, MASK)[:, PADDED.shape[1] - PROMPTS.shape[1] :],
            greedy(model, PROMPTS),
            greedy(model, PROMPTS, use_cache=False),
            greedy(model, PADDED, mask=MASK),
        ]

    plain, said = logits_of(model), greedy(model, PROMPTS)
    with edited_by_hooks(model, EDITS, trigger) as masks:
        expected = behaviour()
    with install_edits(model, EDITS, trigger):
        guarded = behaviour()
    for left, right in zip(guarded[:2], expected[:2], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    for left, right in zip(guarded[2:], expected[2:], strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(guarded[2], said), "nothing changes: nothing is shown"
    assert torch.equal(logits_of(model), plain)
    if trigger is not None:
        assert 0 < masks[0].sum() < masks[0].numel(), "the trigger is always or never active: nothing is shown"


@family_property("generation")
def test_a_guarded_model_says_what_one_edited_by_hand_says(tiny_model: TinyModel, model_type: str) -> None:
    check_against_hand(tiny_model(model_type, dtype=torch.float32), None)


@family_property("trigger")
def test_a_triggered_edit_is_that_written_by_hand(tiny_model: TinyModel, model_type: str) -> None:
    model = tiny_model(model_type, dtype=torch.float32)
    check_against_hand(model, halfway_trigger(model, 0))


@family_property("trigger", ["llama", "gptj", "falcon", "gemma3", "qwen2_moe"])
def test_a_trigger_may_be_in_the_layer_that_is_edited(tiny_model: TinyModel, model_type: str) -> None:
    model = tiny_model(model_type, dtype=torch.float32)
    check_against_hand(model, halfway_trigger(model, EDITS[0].layer))


@pytest.mark.parametrize("triggered", [False, True], ids=["always", "trigger"])
@pytest.mark.parametrize(("model_type", "configuration"), VARIANTS, ids=str)
def test_the_variants_of_a_family_are_guarded_too(
    tiny_model: TinyModel, model_type: str, configuration: dict[str, Any], triggered: bool
) -> None:
    model = tiny_model(model_type, dtype=torch.float32, **configuration)
    check_against_hand(model, halfway_trigger(model, 1) if triggered else None)
