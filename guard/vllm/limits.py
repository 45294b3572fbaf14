"""What vLLM can be told to do that a guard does not survive, or that nobody has shown it to: refused before loading.

Everything is read off vLLM's configuration object by attribute; an attribute that is gone in another version of vLLM is
an error, not a pass. What is not here is allowed: speculative decoding, since the guarded model itself verifies every
token that an unguarded draft proposes, and data parallelism, where every engine has workers of its own.
"""

from typing import Any

from guard.errors import UnsupportedModelError
from guard.spec.edit_spec import EditSpec

LOAD_FORMATS = ("auto", "hf", "safetensors")


def check_settings(config: Any, spec: EditSpec) -> None:
    """UnsupportedModelError, naming the setting, if vLLM's `config` (a VllmConfig) asks for what the guard refuses."""
    model, load, parallel, drafts = (
        config.model_config,
        config.load_config,
        config.parallel_config,
        config.speculative_config,
    )
    elsewhere = "keys and values computed elsewhere may not have been guarded"
    divided = "nobody has shown that the guard acts where a prompt's tokens are divided among ranks"
    refused = {
        f"--load-format {load.load_format}": (
            load.load_format not in LOAD_FORMATS,
            "the weights are checked in the model's safetensors files",
        ),
        f"--quantization {model.quantization}": (
            model.quantization is not None,
            "quantised weights are not those that the spec was made on",
        ),
        f"--runner {model.runner_type}": (model.runner_type != "generate", "only generation is guarded"),
        "--enable-sleep-mode": (bool(model.enable_sleep_mode), "weights that wake up are not checked again"),
        "--kv-transfer-config": (config.kv_transfer_config is not None, elsewhere),
        "--ec-transfer-config": (config.ec_transfer_config is not None, elsewhere),
        "--weight-transfer-config": (
            config.weight_transfer_config is not None,
            "weights that are replaced while serving are not those that the spec was made on",
        ),
        "--enable-dbo": (
            spec.trigger is not None and bool(parallel.use_ubatching),
            "passes that run at the same time would share one trigger",
        ),
        "--prefill-context-parallel-size": (parallel.prefill_context_parallel_size > 1, divided),
        "--decode-context-parallel-size": (parallel.decode_context_parallel_size > 1, divided),
        "rejection_sample_method synthetic in --speculative-config": (
            drafts is not None and drafts.rejection_sample_method == "synthetic",
            "it lets tokens of an unguarded draft pass unverified",
        ),
        "--enable-trace-replay": (bool(model.enable_trace_replay), "clients would write the model's answers for it"),
    }
    for setting, (is_set, reason) in refused.items():
        if is_set:
            raise UnsupportedModelError(f"{setting} cannot be served guarded: {reason}; start vLLM without it.")
