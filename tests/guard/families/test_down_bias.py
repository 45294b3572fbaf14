"""Which configurations give the down projection a bias, on the models themselves."""

from typing import Any

import pytest

from guard.families.architectures import architecture_of, text_configuration
from guard.families.table import FAMILIES, BiasSwitch
from tests.conftest import EVERY_FAMILY, TinyModel


# DeepSeek V2 could have a bias in its shared experts (mlp_bias), but a switch for mixtures is not supported.
@pytest.mark.parametrize("family", [name for name in EVERY_FAMILY if not FAMILIES[name].routes_to_experts])
def test_the_table_knows_which_configurations_give_the_down_projection_a_bias(
    tiny_model: TinyModel, family: str
) -> None:
    configuration = vars(text_configuration(tiny_model(family)))
    switches = [name for name, value in configuration.items() if isinstance(value, bool) and name.endswith("bias")]

    def has_bias(value: bool) -> bool:
        settings: dict[str, Any] = dict.fromkeys(switches, value)
        model = tiny_model(family, **settings)
        architecture = architecture_of(model)
        downs = [architecture.down_projection(layer) for layer in architecture.decoder_layers(model)]
        return all(down.bias is not None for down in downs)

    down_bias = FAMILIES[family].down_bias
    assert (has_bias(False), has_bias(True)) == (down_bias == "always", down_bias != "never")
    assert not isinstance(down_bias, BiasSwitch) or down_bias.entry in switches
