"""What vLLM must not be told to do beside a guard is refused by the name of its setting, and nothing else is."""

from types import SimpleNamespace
from typing import Any

import pytest

from guard.errors import UnsupportedModelError
from guard.vllm.limits import check_settings
from tests.guard.specs import small_spec

ALLOWED: dict[str, Any] = {
    "load_config.load_format": "auto",
    "model_config.quantization": None,
    "model_config.runner_type": "generate",
    "model_config.enable_sleep_mode": False,
    "model_config.enable_trace_replay": False,
    "parallel_config.use_ubatching": False,
    "parallel_config.prefill_context_parallel_size": 1,
    "parallel_config.decode_context_parallel_size": 1,
    "kv_transfer_config": None,
    "ec_transfer_config": None,
    "weight_transfer_config": None,
    "speculative_config": None,
}
REFUSED: dict[str, tuple[str, Any]] = {
    "--load-format dummy": ("load_config.load_format", "dummy"),
    "--quantization fp8": ("model_config.quantization", "fp8"),
    "--runner pooling": ("model_config.runner_type", "pooling"),
    "--enable-sleep-mode": ("model_config.enable_sleep_mode", True),
    "--enable-trace-replay": ("model_config.enable_trace_replay", True),
    "--enable-dbo": ("parallel_config.use_ubatching", True),
    "--prefill-context-parallel-size": ("parallel_config.prefill_context_parallel_size", 2),
    "--decode-context-parallel-size": ("parallel_config.decode_context_parallel_size", 2),
    "--kv-transfer-config": ("kv_transfer_config", object()),
    "--ec-transfer-config": ("ec_transfer_config", object()),
    "--weight-transfer-config": ("weight_transfer_config", object()),
    "rejection_sample_method synthetic": ("speculative_config.rejection_sample_method", "synthetic"),
}


def configuration(**changes: Any) -> Any:
    """A VllmConfig as far as it is read; `changes` by dotted path."""
    whole = SimpleNamespace()
    for path, value in (ALLOWED | changes).items():
        *parents, name = path.split(".")
        place = whole
        for parent in parents:
            if getattr(place, parent, None) is None:
                setattr(place, parent, SimpleNamespace())
            place = getattr(place, parent)
        setattr(place, name, value)
    return whole


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_a_guard_does_not_survive_is_refused_by_name(setting: str) -> None:
    path, value = REFUSED[setting]
    with pytest.raises(UnsupportedModelError, match=setting):
        check_settings(configuration(**{path: value}), small_spec())


@pytest.mark.parametrize("method", ["standard", "block"])
def test_drafts_that_the_guarded_model_verifies_are_allowed(method: str) -> None:
    check_settings(configuration(), small_spec())
    check_settings(configuration(**{"speculative_config.rejection_sample_method": method}), small_spec())


@pytest.mark.parametrize("path", ALLOWED)
def test_a_setting_that_vllm_does_not_have_any_more_is_no_pass(path: str) -> None:
    config = configuration()
    *parents, name = path.split(".")
    place = config
    for parent in parents:
        place = getattr(place, parent)
    delattr(place, name)
    with pytest.raises(AttributeError):
        check_settings(config, small_spec())
