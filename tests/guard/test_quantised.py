"""Models with quantised weights: the edit is one of activations, and the fingerprint one of what is stored.

Each library is tested where it is installed, on the CPU; none is compiled for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from guard import install
from guard.errors import ModelMismatchError
from guard.spec import fingerprint
from guard.spec.edit_spec import Trigger
from tests.conftest import TinyModel
from tests.family_table import family_property
from tests.guard.by_hand import PROMPTS, greedy
from tests.guard.families.test_table import EDITS, halfway_trigger, logits_of, recorded
from tests.guard.family_by_hand import RECIPES, edited_by_hooks, module_in
from tests.guard.test_families_spec import WAY_THROUGH_EXPERTS
from tests.guard.test_install import spec_for
from tests.tiny_families import tiny_family

# On some CPUs bitsandbytes wants all linear maps to have widths in 64s, and heights in 32s.
EVEN: dict[str, Any] = {"d_model": 64, "d_ff": 128}
# Linear maps that bitsandbytes cannot run on a CPU: one output (Qwen2's weight of the shared expert); four dimensions.
KEPT_WIDE = ["lm_head", "shared_expert_gate", "kv_b_proj"]


@dataclass(frozen=True)
class Quantiser:
    """A library, how transformers is asked for it, and what it stores of a linear map."""

    package: str
    configuration: Callable[[], Any]
    stored: Callable[[Any], list[Tensor]]


def torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def nested_scales(linear: Any) -> list[Tensor]:
    """Those of the scales; on some CPUs bitsandbytes multiplies the two out when they are first used."""
    state = linear.weight.quant_state
    return [state.state2.absmax, state.offset] if state.nested else []


def bitsandbytes(**settings: Any) -> Any:
    return BitsAndBytesConfig(bnb_4bit_quant_type="nf4", llm_int8_skip_modules=KEPT_WIDE, **settings)  # type: ignore[no-untyped-call]


QUANTISERS = {
    "bitsandbytes int8": Quantiser(
        "bitsandbytes",
        lambda: bitsandbytes(load_in_8bit=True),
        lambda linear: [linear.weight.data, linear.weight.SCB],
    ),
    "bitsandbytes nf4": Quantiser(
        "bitsandbytes",
        lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        lambda linear: [linear.weight.data, linear.weight.quant_state.absmax, linear.weight.quant_state.code],
    ),
    "bitsandbytes nf4, nested": Quantiser(
        "bitsandbytes",
        lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_use_double_quant=True),
        lambda linear: [linear.weight.data, linear.weight.quant_state.absmax, *nested_scales(linear)],
    ),
    "torchao int8": Quantiser(
        "torchao",
        torchao_int8,
        lambda linear: [linear.weight.qdata, linear.weight.scale],
    ),
    "quanto int8": Quantiser(
        "optimum.quanto",
        lambda: QuantoConfig(weights="int8"),
        lambda linear: [linear.weight._data, linear.weight._scale],
    ),
}


def is_installed(package: str) -> bool:
    parent = package.partition(".")[0]
    return find_spec(parent) is not None and find_spec(package) is not None


def installed(*names: str) -> pytest.MarkDecorator:
    """Run the test with each of these; skipped, with the reason, where the package is not installed."""

    def skip(package: str) -> pytest.MarkDecorator:
        return pytest.mark.skipif(not is_installed(package), reason=f"{package} is not installed")

    return pytest.mark.parametrize("name", [pytest.param(name, marks=skip(QUANTISERS[name].package)) for name in names])


quantisers = installed(*QUANTISERS)


@pytest.fixture
def quantised(tiny_model: TinyModel, tmp_path: Path) -> Callable[..., Any]:
    """Saves a tiny model and loads it quantised."""

    def make(name: str, model_type: str = "llama", seed: int = 0) -> Any:
        folder = tmp_path / f"{model_type}-{seed}"
        tiny_model(model_type, **EVEN, **tiny_family(model_type).even, seed=seed).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=QUANTISERS[name].configuration(),
            dtype=torch.bfloat16,
            device_map="cpu",
            **WAY_THROUGH_EXPERTS.get(model_type, {}),
        )

    return make


def down_of(model: Any, layer: int = 1) -> Any:
    return module_in(model, layer, RECIPES[model.config.model_type].down)


def check_against_hand(model: Any, trigger: Trigger | None) -> None:
    spec = spec_for(model, layers=EDITS, trigger=trigger)
    plain = logits_of(model)
    with edited_by_hooks(model, EDITS, trigger):
        expected = logits_of(model), greedy(model, PROMPTS)
    with install(model, spec):
        torch.testing.assert_close(logits_of(model), expected[0], rtol=2e-2, atol=2e-2)
        assert torch.equal(greedy(model, PROMPTS), expected[1])
    assert torch.equal(logits_of(model), plain)
    assert not torch.allclose(expected[0], plain, rtol=0.2, atol=0.2), "nothing changes: nothing is shown"


@installed("bitsandbytes int8")
@family_property("quantised")
def test_a_quantised_model_says_what_one_edited_by_hand_says(
    quantised: Callable[..., Any], name: str, model_type: str
) -> None:
    model = quantised(name, model_type)
    check_against_hand(model, halfway_trigger(model, 1))


@installed("bitsandbytes nf4")
@family_property("quantised", ["llama", "gpt2", "phi3", "gemma3", "qwen2_moe", "deepseek_v3"])
def test_a_model_in_4_bits_says_what_one_edited_by_hand_says(
    quantised: Callable[..., Any], name: str, model_type: str
) -> None:
    model = quantised(name, model_type)
    check_against_hand(model, halfway_trigger(model, 1))


@quantisers
@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2"])
def test_an_edit_without_a_trigger_acts_in_a_model_quantised_by_any_library(
    quantised: Callable[..., Any], name: str, model_type: str
) -> None:
    check_against_hand(quantised(name, model_type), None)


@quantisers
def test_what_reaches_a_quantised_projection_is_in_bounds(quantised: Callable[..., Any], name: str) -> None:
    model = quantised(name)
    down = down_of(model)
    with (
        install(model, spec_for(model, layers=EDITS)) as installation,
        recorded(down) as edited,
        recorded(installation.guarded[0].edit) as made,
    ):
        logits_of(model)
    edit = EDITS[0]
    inside = edited[0][..., list(edit.neurons)]
    assert (inside >= torch.tensor(edit.lower)).all() and (inside <= torch.tensor(edit.upper)).all()
    others = [j for j in range(128) if j not in edit.neurons]
    assert torch.equal(edited[0][..., others], made[0][..., others])


@quantisers
def test_a_quantised_fingerprint_is_that_of_every_load_and_outlives_use(
    quantised: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    model = quantised(name)
    spec = spec_for(model, layers=EDITS)
    greedy(model, PROMPTS)
    fingerprint.verify(spec, model)
    fingerprint.verify(spec, quantised(name))
    with pytest.raises(ModelMismatchError, match="MLP weights"):
        fingerprint.verify(spec, quantised(name, seed=1))


@quantisers
def test_a_model_before_it_was_quantised_is_another_one(
    quantised: Callable[..., Any], tiny_model: TinyModel, name: str
) -> None:
    spec = spec_for(quantised(name), layers=EDITS)
    with pytest.raises(ModelMismatchError, match="MLP weights"):
        fingerprint.verify(spec, tiny_model(**EVEN))


@quantisers
def test_reading_the_fingerprint_changes_nothing(quantised: Callable[..., Any], name: str) -> None:
    model = quantised(name)
    plain = logits_of(model)
    for _ in range(3):
        fingerprint.mlp_digest(model, [1])
        assert torch.equal(logits_of(model), plain)


@quantisers
def test_every_stored_number_of_a_quantised_projection_counts(quantised: Callable[..., Any], name: str) -> None:
    model = quantised(name)
    before = fingerprint.mlp_digest(model, [1])
    stored = QUANTISERS[name].stored(down_of(model))
    assert not stored[0].is_floating_point()
    for tensor in stored:
        kept = tensor.clone()
        tensor.view(-1)[-1:] += 1
        assert fingerprint.mlp_digest(model, [1]) != before
        tensor.copy_(kept)
        assert fingerprint.mlp_digest(model, [1]) == before
