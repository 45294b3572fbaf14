"""From the residual stream to the logits by formula, against each family's own norm, unembedding and read-out."""

import pytest
import torch
from torch import Tensor, nn

from calibration.effects.exact.final_norm import Norm, Prediction, final_norm_of, norm_of
from guard.errors import UnsupportedModelError
from guard.families.architectures import architecture_of
from tests.calibration.late_models import late_model, shared_model
from tests.conftest import FAMILIES, MIXTURES

families = pytest.mark.parametrize("model_type", [*FAMILIES, *MIXTURES, "gemma3"])


def streams(*shape: int) -> Tensor:
    """Residual streams with a mean, so that LayerNorm differs from RMSNorm."""
    return 0.7 + torch.randn(*shape, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@families
def test_predictions_are_those_of_the_models_own_logits(model_type: str) -> None:
    model, stream = shared_model(model_type), streams(2, 5)
    architecture = architecture_of(model)
    predicted = final_norm_of(model, architecture, torch.float64).predict(stream)
    expected = architecture.logits(model, stream).log_softmax(-1)
    torch.testing.assert_close(predicted.log_p, expected, rtol=0, atol=1e-12)


@families
def test_a_longer_stream_multiplies_the_rescaled_part_by_t_and_leaves_the_rest(model_type: str) -> None:
    model, stream, displacement = shared_model(model_type), streams(3), streams(3) * 0.3 - 1.0
    architecture = architecture_of(model)
    final = final_norm_of(model, architecture, torch.float64)
    base, moved = final.predict(stream), final.predict(stream + displacement)
    x, e = final.norm.centred(stream), final.norm.centred(displacement)
    shrink = final.norm.shrink(x, (x * e).sum(-1, keepdim=True), e.square().sum(-1, keepdim=True))
    rms = final.norm.mean_square(x).sqrt()[:, None]
    change = shrink * base.rescaled + (1 + shrink) / rms * (e @ final.unembedding.T)
    change = base.capped(change, base.logits)
    torch.testing.assert_close((base.log_p + change).log_softmax(-1), moved.log_p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2", "glm4"])
def test_the_norm_after_the_mlp_has_the_same_formula(model_type: str) -> None:
    model, given = shared_model(model_type), streams(4)
    architecture = architecture_of(model)
    module = architecture.post_mlp_norm(architecture.decoder_layers(model)[1])
    assert module is not None
    norm = norm_of(architecture, module, torch.float64)
    x = norm.centred(given)
    torch.testing.assert_close(x / norm.mean_square(x).sqrt()[:, None] * norm.weight, module(given))


def test_narrow_models_are_read_in_float32() -> None:
    model = late_model("cohere", dtype=torch.bfloat16)
    final = final_norm_of(model, architecture_of(model), torch.float32)
    assert final.unembedding.dtype == final.norm.weight.dtype == torch.float32
    assert final.predict(streams(2).float()).log_p.dtype == torch.float32


def test_the_shrink_of_a_small_displacement_keeps_its_digits() -> None:
    x = streams(1)
    e = 1e-9 * streams(1).flip(-1)
    norm = Norm(torch.ones(24), None, 1e-6, centres=False)
    small = norm.shrink(x, (x * e).sum(-1, keepdim=True), e.square().sum(-1, keepdim=True))
    slope = -(x * e).sum(-1) / (x.square().sum(-1) + 24e-6)
    torch.testing.assert_close(small[:, 0], slope, rtol=1e-7, atol=0)


def test_a_soft_cap_lets_small_moves_keep_their_digits() -> None:
    z, move = torch.tensor([-30.0, -1.0, 0.0, 4.0]), torch.tensor([1e-6, -1e-6, 1e-6, 1e-6])
    capped = Prediction(z, z, z, 5.0).capped(move, z)
    wide = 5.0 * (torch.tanh((z.double() + move.double()) / 5.0) - torch.tanh(z.double() / 5.0))
    torch.testing.assert_close(capped.double()[1:], wide[1:], rtol=1e-5, atol=0)
    assert capped[0].abs() < 1e-9


@pytest.mark.parametrize("broken", ["no weight", "no epsilon"])
def test_a_norm_without_a_weight_or_an_epsilon_is_refused(broken: str) -> None:
    model = late_model("gpt2")
    norm = nn.LayerNorm(24, elementwise_affine=False) if broken == "no weight" else nn.Linear(24, 24)
    with pytest.raises(UnsupportedModelError, match="no formula is known"):
        norm_of(architecture_of(model), norm, torch.float64)
