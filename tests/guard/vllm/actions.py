"""What the jobs of engine.py do with a running vLLM; every result is JSON."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.compilation.counter import compilation_counter
from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
from vllm.config import CompilationMode
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.fusion import fused_act_quant
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym
from vllm.platforms import current_platform

from guard.errors import NeuronGuardError

Edit = Callable[[Any], None]


def generate(llm: LLM, prompts: list[list[int]], adapter: str | None = None, **settings: Any) -> list[dict[str, Any]]:
    """Tokens and their log-probabilities, greedily, for prompts of token ids; with the LoRA adapter in a folder."""
    sampling = SamplingParams(temperature=0.0, logprobs=0, ignore_eos=True, **({"max_tokens": 8} | settings))
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        sampling,
        use_tqdm=False,
        lora_request=LoRARequest("adapter", 1, adapter) if adapter else None,
    )
    return [
        {
            "tokens": list(output.outputs[0].token_ids),
            "logprobs": [next(iter(entry.values())).logprob for entry in output.outputs[0].logprobs],
            "cached": output.num_cached_tokens,
        }
        for output in outputs
    ]


def self_test(llm: LLM) -> Any:
    """What each rank says of itself."""
    return llm.collective_rpc("guard_self_test")


def counts(llm: LLM) -> Any:
    """What each rank has counted."""
    return llm.collective_rpc("guard_counts")


def exchange(llm: LLM, config: dict[str, Any]) -> list[Any]:
    """What the ranks say, step by step, while the spec in `config` takes over from the one that the engine has."""
    entry = config["neuron_guard"]
    return [
        *llm.collective_rpc("guard_prepare", args=(entry,)),
        *llm.collective_rpc("guard_exchange", args=(entry["digest"],)),
        *llm.collective_rpc("guard_admit", args=(entry["digest"], True)),
    ]


def drafts(llm: LLM) -> dict[str, int]:
    """How many tokens drafts proposed, and how many of them the model accepted."""
    found = {metric.name: metric for metric in llm.get_metrics()}
    return {name: found[f"vllm:spec_decode_num_{name}_tokens"].value for name in ("draft", "accepted")}


def fork_ranks() -> None:
    """Start ranks as copies of this process, which has vLLM imported; on a CPU each would import it anew."""
    platform = type(current_platform)
    usual = platform.check_and_update_config

    def check_and_update_config(config: Any) -> None:
        usual(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    platform.check_and_update_config = staticmethod(check_and_update_config)


def compiled(_: LLM) -> dict[str, int]:
    """How many models this engine compiled, how many compiled ones it loaded from disk, and into how many pieces."""
    return {
        "compiled": compilation_counter.num_aot_compiles,
        "loaded": compilation_counter.num_aot_artifacts_loaded,
        "pieces": compilation_counter.num_piecewise_capturable_graphs_seen,
    }


def error_of(llm: LLM, name: str, *arguments: Any) -> str:
    """The error that another action ends in."""
    try:
        ACTIONS[name](llm, *arguments)
    except NeuronGuardError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def tamper(llm: LLM, how: str) -> None:
    """Take the guard off, or weaken it, behind its back."""
    llm.collective_rpc(TAMPERING[how])


def _plain_activation(worker: Any) -> None:
    layer = worker.guard.layers[0]
    setattr(layer.parent, layer.name, layer.module.plain)


def _other_edit(worker: Any) -> None:
    layer = worker.guard.layers[0]
    layer.module.edit = layer.made_anew()


def _weaker_bound(worker: Any) -> None:
    worker.guard.layers[0].own.upper_of_all.fill_(torch.inf)


def _plain_norm(worker: Any) -> None:
    parent, name = worker.guard.trigger_at
    setattr(parent, name, worker.guard.trigger.original)


def _no_edit_in_code(worker: Any) -> None:
    layer = worker.guard.layers[0]
    layer.module.forward = layer.module.plain.forward


def _idle_mask(worker: Any) -> None:
    worker.guard.trigger.mask.write = lambda active: None


def _threshold(worker: Any) -> None:
    worker.guard.trigger.readout.threshold.fill_(torch.inf)


TAMPERING: dict[str, Edit] = {
    "the plain activation put back": _plain_activation,
    "another edit in its place": _other_edit,
    "one form of a bound lifted": _weaker_bound,
    "the plain norm put back": _plain_norm,
    "a forward method that does not edit": _no_edit_in_code,
    "a mask that is never written": _idle_mask,
    "a threshold that is never reached": _threshold,
}


def fused(llm: LLM) -> list[bool]:
    """Does vLLM's fusion of activation and FP8 quantisation know its own activation, and pass by the guarded one?"""

    def look(worker: Any) -> list[bool]:
        module = worker.guard.layers[0].module
        linear = torch.nn.Identity()
        linear._input_quant_key = kFp8StaticTensorSym
        packed = torch.randn(3, 2 * module.edit.d_ff)
        made = fused_act_quant.maybe_fused_act_quant(module, packed, linear)
        return [
            (SiluAndMul, kFp8StaticTensorSym) in fused_act_quant._FUSED_ACT_QUANT,
            bool(torch.equal(made, module(packed))),
        ]

    found: list[bool] = llm.collective_rpc(look)[0]
    return found


@cache
def force_piecewise() -> None:
    """Make vLLM compile on a CPU as it does on CUDA from now on: in pieces, cut at attention layers, kept on disk."""
    platform = type(current_platform)
    usual = platform.check_and_update_config

    def check_and_update_config(config: Any) -> None:
        usual(config)
        config.compilation_config.mode = CompilationMode.VLLM_COMPILE
        config.compilation_config.backend = "inductor"
        config.compilation_config.compile_sizes = []

    platform.check_and_update_config = staticmethod(check_and_update_config)
    # saves copies, and asks for kernels that a CPU does not have
    FixFunctionalizationPass.__call__ = lambda *_: None


ACTIONS: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "self_test": self_test,
    "counts": counts,
    "compiled": compiled,
    "drafts": drafts,
    "exchange": exchange,
    "error_of": error_of,
    "tamper": tamper,
    "fused": fused,
}
