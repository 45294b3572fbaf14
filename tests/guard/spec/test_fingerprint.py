"""A spec belongs to one model: a digest that changes with it, and with nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from guard.errors import ModelMismatchError, UnsupportedModelError
from guard.hf import install_edits
from guard.spec import fingerprint
from guard.spec.edit_spec import EditSpec, LayerEdit
from tests.conftest import TinyModel
from tests.guard.specs import EVIDENCE, PROVENANCE

GUARDED = (1, 2)
EDITS = tuple(LayerEdit(layer=layer, neurons=(3,), scale=(1.0,), lower=(0.0,), upper=(0.0,)) for layer in GUARDED)
UNKNOWN, PADDING = "[UNK]", "[PAD]"
VOCABULARY = {"a": 0, "b": 1, "ab": 2, "c": 3, UNKNOWN: 4, PADDING: 5}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def make_tokenizer(*, merges: Any = (("a", "b"),), template: Any = TEMPLATE, lower: bool = False) -> Any:
    backend = Tokenizer(models.BPE(vocab=VOCABULARY, merges=list(merges), unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN, pad_token=PADDING)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = template
    return tokenizer


def spec_of(model: nn.Module, tokenizer: Any = None) -> EditSpec:
    evidence = EVIDENCE.model_copy(update={"mediators": (), "neurons": ()})
    identity = fingerprint.fingerprint(model, GUARDED, tokenizer)
    return EditSpec(
        schema_version=1, model=identity, layers=EDITS, trigger=None, provenance=PROVENANCE, evidence=evidence
    )


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_identity_tells_type_and_shape(tiny_model: TinyModel, model_type: str) -> None:
    identity = fingerprint.fingerprint(tiny_model(model_type), GUARDED)
    shape = (identity.num_hidden_layers, identity.d_model, identity.d_ff, identity.vocab_size)
    assert (identity.model_type, *shape) == (model_type, 3, 24, 37, 61)
    assert (identity.tokenizer_digest, identity.chat_template_digest) == (None, None)


def test_a_spec_fits_the_model_that_it_was_made_on(tiny_model: TinyModel) -> None:
    fingerprint.verify(spec_of(tiny_model(), make_tokenizer()), tiny_model(), make_tokenizer())


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("layer", range(3))
def test_every_weight_of_a_guarded_mlp_counts_and_no_other(tiny_model: TinyModel, name: str, layer: int) -> None:
    model: Any = tiny_model()
    before = fingerprint.mlp_digest(model, GUARDED)
    with torch.no_grad():
        getattr(model.model.layers[layer].mlp, name).weight[-1, -1] += 0.5
    assert (fingerprint.mlp_digest(model, GUARDED) != before) == (layer in GUARDED)


def test_weights_outside_the_mlps_do_not_count(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    before = fingerprint.mlp_digest(model, GUARDED)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        model.model.layers[1].self_attn.o_proj.weight.mul_(2)
    assert fingerprint.mlp_digest(model, GUARDED) == before


def test_two_layers_or_projections_that_change_places_are_noticed(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    before = fingerprint.mlp_digest(model, GUARDED)
    first, second = model.model.layers[1], model.model.layers[2]
    first.mlp, second.mlp = second.mlp, first.mlp
    assert fingerprint.mlp_digest(model, GUARDED) != before
    first.mlp, second.mlp = second.mlp, first.mlp
    assert fingerprint.mlp_digest(model, GUARDED) == before
    first.mlp.gate_proj, first.mlp.up_proj = first.mlp.up_proj, first.mlp.gate_proj
    assert fingerprint.mlp_digest(model, GUARDED) != before


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loaded", [torch.float32, torch.float64])
def test_a_wider_load_of_the_same_checkpoint_is_the_same_model(
    tiny_model: TinyModel, stored: torch.dtype, loaded: torch.dtype
) -> None:
    model = tiny_model(dtype=stored)
    before = fingerprint.mlp_digest(model, GUARDED)
    assert fingerprint.mlp_digest(nn.Module.to(model, loaded), GUARDED) == before


def test_a_load_that_rounds_weights_is_another_model(tiny_model: TinyModel) -> None:
    spec = spec_of(tiny_model())
    with pytest.raises(ModelMismatchError, match=r"the MLP weights of layers \[1, 2\] differ"):
        fingerprint.verify(spec, tiny_model(dtype=torch.bfloat16))


def test_an_installed_guard_leaves_no_trace(tiny_model: TinyModel) -> None:
    model = tiny_model()
    before = fingerprint.fingerprint(model, GUARDED)
    with install_edits(model, EDITS):
        assert fingerprint.fingerprint(model, GUARDED) == before


def test_a_compiled_model_is_the_same_model(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    before = fingerprint.fingerprint(model, GUARDED)
    model.model.layers[1] = torch.compile(model.model.layers[1])
    compiled: Any = torch.compile(model)
    assert fingerprint.fingerprint(compiled, GUARDED) == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"layers": 4}, "num_hidden_layers is 4 here and 3 in the spec"),
        ({"d_model": 32}, "d_model is 32 here and 24 in the spec"),
        ({"d_ff": 40}, "d_ff is 40 here and 37 in the spec"),
        ({"vocabulary": 62}, "vocab_size is 62 here and 61 in the spec"),
        ({"model_type": "qwen2"}, "model_type is qwen2 here and llama in the spec"),
        ({"seed": 1}, r"the MLP weights of layers \[1, 2\] differ"),
        (
            {"layers": 2, "d_ff": 40},
            "num_hidden_layers is 2 here and 3 in the spec; d_ff is 40 here and 37 in the spec",
        ),
    ],
)
def test_another_model_is_refused_with_each_difference(
    tiny_model: TinyModel, change: dict[str, Any], difference: str
) -> None:
    with pytest.raises(ModelMismatchError, match=f"^the spec was made on another model: {difference}; load the model"):
        fingerprint.verify(spec_of(tiny_model()), tiny_model(**change))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"merges": ()}, "the tokenizer differs"),
        ({"lower": True}, "the tokenizer differs"),
        ({"template": TEMPLATE + " "}, "the chat template differs"),
        ({"template": None}, "the chat template differs"),
        ({"template": {"default": TEMPLATE}}, "the chat template differs"),
        ({"merges": (), "template": None}, "the tokenizer differs; the chat template differs"),
    ],
)
def test_another_tokenizer_is_refused_with_each_difference(
    tiny_model: TinyModel, change: dict[str, Any], difference: str
) -> None:
    spec = spec_of(tiny_model(), make_tokenizer())
    with pytest.raises(ModelMismatchError, match=f"^the spec was made on another model: {difference}; load the model"):
        fingerprint.verify(spec, tiny_model(), make_tokenizer(**change))


def test_a_spec_made_without_a_chat_template_refuses_a_tokenizer_that_has_one(tiny_model: TinyModel) -> None:
    spec = spec_of(tiny_model(), make_tokenizer(template=None))
    with pytest.raises(ModelMismatchError, match="the chat template differs"):
        fingerprint.verify(spec, tiny_model(), make_tokenizer())


def test_without_a_tokenizer_on_both_sides_none_is_compared(tiny_model: TinyModel) -> None:
    fingerprint.verify(spec_of(tiny_model(), make_tokenizer()), tiny_model())
    fingerprint.verify(spec_of(tiny_model()), tiny_model(), make_tokenizer())


def test_padding_and_truncation_of_earlier_calls_leave_no_trace() -> None:
    tokenizer = make_tokenizer()
    before = fingerprint.tokenizer_digest(tokenizer)
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=2)
    assert fingerprint.tokenizer_digest(tokenizer) == before


def test_an_added_token_is_noticed() -> None:
    tokenizer = make_tokenizer()
    before = fingerprint.tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["new"])
    assert fingerprint.tokenizer_digest(tokenizer) != before


def test_a_saved_tokenizer_is_the_same_one(tmp_path: Any) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for digest in (fingerprint.tokenizer_digest, fingerprint.chat_template_digest):
        assert digest(loaded) == digest(tokenizer)


def test_a_tokenizer_in_python_is_known_by_its_vocabulary() -> None:
    class Python:
        def __init__(self, vocabulary: dict[str, int]) -> None:
            self.vocabulary = vocabulary

        def get_vocab(self) -> dict[str, int]:
            return self.vocabulary

    digest: Callable[[Any], str] = fingerprint.tokenizer_digest
    assert digest(Python({"a": 0, "b": 1})) == digest(Python({"b": 1, "a": 0}))
    assert digest(Python({"a": 0, "b": 1})) != digest(Python({"a": 1, "b": 0}))


def test_a_layer_that_the_model_does_not_have_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelMismatchError, match=r"layers \[1, 3\] are to be guarded, but the model has layers 0 to 2"):
        fingerprint.fingerprint(tiny_model(), [3, 1])


def test_weights_that_are_not_loaded_are_refused(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(UnsupportedModelError, match="the MLP weights of layer 1 are offloaded"):
        fingerprint.fingerprint(model, GUARDED)
