"""An edit in the weights against the same edit by the guard: equal in every family, or refused in one sentence."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guard.errors import EditNotAppliedError, FoldError, ModelMismatchError
from guard.families.architectures import architecture_of
from guard.families.table import FAMILIES as FAMILY_TABLE
from guard.families.table import BiasSwitch
from guard.fold import check_foldable, fold_edits, folding_of
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit
from guard.spec.fingerprint import mlp_digest
from tests.conftest import TinyModel, make_tiny_model
from tests.family_table import GUARDED, counts_to
from tests.guard.by_hand import PROMPTS, greedy, make_trigger

NO_BIAS = tuple(name for name in GUARDED if FAMILY_TABLE[name].down_bias == "never")
SWITCHES = {name: family.down_bias for name, family in FAMILY_TABLE.items() if isinstance(family.down_bias, BiasSwitch)}
FREE = (-math.inf, math.inf)
# The value of an ablation is large: what Gemma's norm after the MLP leaves of a small one could be missed.
KINDS = {
    "scale": ((2.5, *FREE), (-0.5, *FREE)),
    "zero": ((1.0, 0.0, 0.0), (0.0, *FREE)),
    "scale and zero": ((2.5, *FREE), (1.0, 0.0, 0.0)),
    "mean": ((1.0, 4.0, 4.0), (3.0, -2.5, -2.5)),
}


def edits_of(kind: str) -> tuple[LayerEdit, ...]:
    """Five neurons in the last two of three layers."""
    first, second = KINDS[kind]
    layers = []
    for layer, neurons in ((1, (0, 7, 36)), (2, (3, 20))):
        scale, lower, upper = zip(*(first if place % 2 else second for place in range(len(neurons))), strict=True)
        layers.append(LayerEdit(layer=layer, neurons=neurons, scale=scale, lower=lower, upper=upper))
    return tuple(layers)


def one(neuron: int = 5, *, layer: int = 1, scale: float = 1.0, lower: float = 0.5, upper: float = 0.5) -> LayerEdit:
    return LayerEdit(layer=layer, neurons=(neuron,), scale=(scale,), lower=(lower,), upper=(upper,))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(PROMPTS).logits
    return logits


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_folds(model: Any, edits: tuple[LayerEdit, ...]) -> None:
    plain = logits_of(model)
    with install_edits(model, edits):
        expected, generated = logits_of(model), greedy(model, PROMPTS)
    fold_edits(model, edits)
    assert (expected - plain).abs().max() > 1e-6, "the edit changes nothing: the test shows nothing"
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-10, atol=1e-11)
    assert torch.equal(greedy(model, PROMPTS), generated)


@counts_to("fold")
@pytest.mark.parametrize("family", GUARDED)
def test_a_scale_and_an_ablation_to_zero_fold_in_every_family(tiny_model: TinyModel, family: str) -> None:
    assert_folds(tiny_model(family, dtype=torch.float64), edits_of("scale and zero"))


@pytest.mark.parametrize("family", [family for family in GUARDED if family not in NO_BIAS])
def test_an_ablation_to_a_value_folds_where_the_family_can_have_a_bias(tiny_model: TinyModel, family: str) -> None:
    assert_folds(tiny_model(family, dtype=torch.float64), edits_of("mean"))


@pytest.mark.parametrize("family", NO_BIAS)
def test_an_ablation_to_a_value_is_refused_by_name_where_there_can_be_no_bias(
    tiny_model: TinyModel, family: str
) -> None:
    model = tiny_model(family)
    before = state_of(model)
    with pytest.raises(FoldError, match=f"neuron 0 of layer 1 is held at .*, and a {family} model cannot") as caught:
        fold_edits(model, (*edits_of("zero")[1:], *edits_of("mean")[:1]))
    assert "only scales and ablations to 0" in str(caught.value)
    assert "serve the spec with the guard" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "off"),
    [
        ("starcoder2", {"use_bias": False}),
        ("opt", {"enable_bias": False}),
        ("falcon", {"bias": False}),
        ("llama", {"mlp_bias": True}),
        ("granite", {"mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
    ],
)
def test_variants_of_a_family_fold_too(tiny_model: TinyModel, family: str, off: dict[str, Any]) -> None:
    assert_folds(tiny_model(family, dtype=torch.float64, **off), edits_of("mean"))


@pytest.mark.parametrize("family", SWITCHES)
def test_a_switch_makes_exactly_the_model_of_its_configuration(tiny_model: TinyModel, family: str) -> None:
    switch = SWITCHES[family]
    without: dict[str, Any] = {switch.entry: False}
    model = tiny_model(family, **without)
    assert fold_edits(model, edits_of("mean")) == switch.entry
    built: Any = type(model)(copy.deepcopy(model.config))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in built.state_dict().items()
    }


def test_only_the_needed_biases_are_not_zero(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    fold_edits(model, (one(lower=0.5, upper=0.5),))
    biases = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("bias")}
    assert len(biases) == 9
    assert [name for name, tensor in biases.items() if tensor.any()] == ["model.layers.1.mlp.down_proj.bias"]


@pytest.mark.parametrize("kind", ["scale", "zero"])
def test_no_bias_is_switched_on_that_is_not_needed(tiny_model: TinyModel, kind: str) -> None:
    model = tiny_model("llama")
    names = list(model.state_dict())
    assert fold_edits(model, edits_of(kind)) is None
    assert list(model.state_dict()) == names
    assert model.config.mlp_bias is False


@pytest.mark.parametrize("family", ["llama", "gpt2", "granite", "bloom"])
def test_nothing_else_changes(tiny_model: TinyModel, family: str) -> None:
    model = tiny_model(family)
    before = state_of(model)
    fold_edits(model, (one(neuron=7, lower=0.5, upper=0.5),))
    down = architecture_of(model).down_projection(architecture_of(model).decoder_layers(model)[1])
    for name, tensor in model.state_dict().items():
        if name in before and tensor is not None and tensor.data_ptr() == down.weight.data_ptr():  # type: ignore[operator]
            index = (slice(None), 7) if isinstance(down, nn.Linear) else (7,)
            before[name][index] = 0.0
            assert torch.equal(tensor, before[name])
        elif name in before and not name.endswith("bias"):
            assert torch.equal(tensor, before[name])


CLAMPS = {
    "a clamp": (1.0, -0.5, 0.5),
    "a lower bound": (1.0, -0.5, math.inf),
    "an upper bound": (2.0, -math.inf, 0.25),
}


@pytest.mark.parametrize("bounds", CLAMPS.values(), ids=CLAMPS.keys())
def test_a_clamp_is_refused_with_its_neuron_and_what_to_do(
    tiny_model: TinyModel, bounds: tuple[float, float, float]
) -> None:
    scale, lower, upper = bounds
    edit = LayerEdit(layer=2, neurons=(1, 9), scale=(0.5, scale), lower=(-math.inf, lower), upper=(math.inf, upper))
    model = tiny_model()
    before = state_of(model)
    with pytest.raises(FoldError, match=r"neuron 9 of layer 2 is clamped .*; serve the spec with the guard instead"):
        fold_edits(model, (*edits_of("zero")[:1], edit))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_trigger_is_refused() -> None:
    with pytest.raises(FoldError, match="a trigger in layer 1, and weights act on every token; serve"):
        check_foldable(edits_of("zero"), make_trigger())


def test_an_empty_edit_is_refused() -> None:
    with pytest.raises(FoldError, match="edits no neuron"):
        check_foldable(())


@pytest.mark.parametrize(("lower", "upper", "value"), [(-1.0, 1.0, 0.0), (0.5, 2.0, 0.5), (-2.0, -0.5, -0.5)])
def test_a_scale_of_zero_is_an_ablation_to_the_bound_next_to_zero(lower: float, upper: float, value: float) -> None:
    folding = folding_of(one(scale=0.0, lower=lower, upper=upper))
    assert (folding.factor.item(), folding.constant.item()) == (0.0, value)


def test_an_ablation_to_zero_is_exact_and_leaves_no_negative_zero(tiny_model: TinyModel) -> None:
    model: Any = tiny_model(dtype=torch.bfloat16)
    fold_edits(model, edits_of("zero"))
    column = model.model.layers[1].mlp.down_proj.weight[:, 7]
    assert not column.any()
    assert not column.signbit().any()


def test_folding_under_a_guard_is_refused(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, edits_of("zero")[1:]), pytest.raises(EditNotAppliedError, match="remove that"):
        fold_edits(model, edits_of("zero")[:1])


@pytest.mark.parametrize("edit", [one(layer=3), one(neuron=37)])
def test_an_edit_that_does_not_fit_the_model_is_refused(tiny_model: TinyModel, edit: LayerEdit) -> None:
    with pytest.raises(ModelMismatchError):
        fold_edits(tiny_model(), (edit,))


def test_a_layer_named_twice_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(FoldError, match="each layer must be named once"):
        fold_edits(tiny_model(), (one(1), one(2)))


def test_weights_that_overflow_are_refused_and_left_alone(tiny_model: TinyModel) -> None:
    model = tiny_model(dtype=torch.float16)
    before = mlp_digest(model, [0, 1, 2])
    with pytest.raises(FoldError, match="layer 1 do not fit in float16"):
        fold_edits(model, (one(scale=1e8, lower=-math.inf, upper=math.inf), one(layer=2, lower=0.0, upper=0.0)))
    assert mlp_digest(model, [0, 1, 2]) == before


def test_a_shared_down_projection_is_refused(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    model.model.layers[0].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    with pytest.raises(FoldError, match=r"is shared \(model.layers.0.*model.layers.1.*everywhere"):
        fold_edits(model, edits_of("zero"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    model: Any = tiny_model()
    down = model.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(down.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(FoldError, match="layer 1 is quantised"):
        fold_edits(model, edits_of("zero"))


def test_a_compiled_model_is_folded_beneath_its_wrapper(tiny_model: TinyModel) -> None:
    model, compiled = tiny_model(), tiny_model()
    fold_edits(model, edits_of("mean"))
    assert fold_edits(torch.compile(compiled), edits_of("mean")) == "mlp_bias"  # type: ignore[arg-type]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in compiled.state_dict().items())


finite = st.floats(-8.0, 8.0, width=32)


@st.composite
def foldable_edits(draw: st.DrawFn) -> LayerEdit:
    neurons = sorted(draw(st.sets(st.integers(0, 36), min_size=1, max_size=6)))
    held, scaled = finite.map(lambda value: (value, value)), st.just(FREE)
    bounds = [draw(held | scaled) for _ in neurons]
    return LayerEdit(
        layer=draw(st.integers(0, 1)),
        neurons=tuple(neurons),
        scale=tuple(draw(finite) for _ in neurons),
        lower=tuple(lower for lower, _ in bounds),
        upper=tuple(upper for _, upper in bounds),
    )


@settings(max_examples=50)
@given(foldable_edits(), st.sampled_from(["llama", "gpt2"]))
def test_any_foldable_edit_gives_the_down_projection_of_the_edited_neurons(edit: LayerEdit, family: str) -> None:
    model = make_tiny_model(family, layers=2, d_model=8, vocabulary=5, dtype=torch.float64)
    architecture = architecture_of(model)
    h = 3 * torch.randn(5, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = architecture.decoder_layers(model)[edit.layer]
    with install_edits(model, (edit,)), torch.no_grad():
        expected = architecture.down_projection(layer)(h)
    fold_edits(model, (edit,))
    with torch.no_grad():
        torch.testing.assert_close(architecture.down_projection(layer)(h), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=50)
@given(foldable_edits(), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_each_folded_weight_is_the_exact_one_rounded_once(edit: LayerEdit, dtype: torch.dtype) -> None:
    model = make_tiny_model("gpt2", layers=2, d_model=8, vocabulary=5, dtype=dtype)
    exact = copy.deepcopy(model).double()
    fold_edits(model, (edit,))
    fold_edits(exact, (edit,))
    for name, tensor in model.state_dict().items():
        wanted = exact.state_dict()[name]
        # half a unit in the last place, and a hair more since torch passes float32 on its way
        unit = torch.finfo(dtype).eps * wanted.abs().clamp(min=torch.finfo(dtype).smallest_normal)
        assert bool(((tensor.double() - wanted).abs() <= unit * (0.5 + 2.0**-13)).all()), name
