"""The columns of a down projection, whatever holds them."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from calibration.effects.exact import down_columns
from calibration.effects.exact.down_columns import down_weight, own_weight
from guard.errors import UnsupportedModelError
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit
from tests.calibration.late_models import Int8Linear
from tests.conftest import TinyModel

WIDE = torch.float64


def random_linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(7, 5).requires_grad_(False)


def test_a_linear_map_and_its_transposed_form_have_the_same_columns() -> None:
    linear, transposed = random_linear(), Conv1D(5, 7)  # type: ignore[no-untyped-call]
    transposed.weight = nn.Parameter(linear.weight.T.clone(), requires_grad=False)
    assert torch.equal(down_weight(linear, WIDE, torch.float32), linear.weight.double())
    assert torch.equal(down_weight(transposed, WIDE, torch.float32), linear.weight.double())


@pytest.mark.parametrize("at_once", [3, 7, 1024])
def test_a_quantised_map_is_asked_for_its_columns_and_its_bias_is_left_out(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(down_columns, "UNITS_AT_ONCE", at_once)
    quantised = Int8Linear(random_linear())
    assert own_weight(quantised) is None
    torch.testing.assert_close(down_weight(quantised, WIDE, torch.float32), quantised.dequantised().double())


def test_a_packed_weight_is_not_taken_for_columns() -> None:
    linear = random_linear()
    packed: Tensor = torch.zeros(18, 1)
    linear.weight = nn.Parameter(packed, requires_grad=False)
    assert own_weight(linear) is None


def test_a_guarded_projection_is_refused(tiny_model: TinyModel) -> None:
    model = tiny_model()
    edit = LayerEdit(layer=1, neurons=(0,), scale=(1.0,), lower=(0.0,), upper=(0.0,))
    with install_edits(model, [edit]), pytest.raises(UnsupportedModelError, match="remove it"):
        down_weight(model.get_submodule("model.layers.1.mlp.down_proj"), WIDE, torch.float32)
