"""Kernels of other projects for silu(gate) * up, for those who have them installed: vLLM's and Liger's.

None is needed, none is a dependency. vLLM itself is not imported, which would start its platform detection and logging:
its compiled library registers its kernels with torch when loaded. What is not there is reported with the reason.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.op.cases import Inputs

Kernel = Callable[[Inputs], Tensor]
VLLM, VLLM_CLAMP, LIGER = "vLLM", "vLLM, clamped inputs", "Liger"
WANT_PACKED = (VLLM, VLLM_CLAMP)
HIGHEST_INPUT = 1e4  # the scalar limit of vLLM's clamp, beyond all inputs: the work is done, nothing is changed


def peers(device: torch.device) -> tuple[dict[str, Kernel], dict[str, str]]:
    """The kernels that can run on `device` by name, and for each that cannot the reason."""
    found, absent = vllm_kernels(device)
    if folder_of("liger_kernel") is None:
        absent[LIGER] = "not installed"
    elif device.type != "cuda":
        absent[LIGER] = "runs on CUDA devices only"
    else:
        found[LIGER] = liger_kernel()
    return found, absent


def vllm_kernels(device: torch.device) -> tuple[dict[str, Kernel], dict[str, str]]:
    """vLLM's silu_and_mul and silu_and_mul_with_clamp, as far as its build for `device` has them."""
    reason = load_vllm_library(device)
    if reason is not None:
        return {}, dict.fromkeys(WANT_PACKED, reason)
    found: dict[str, Kernel] = {VLLM: silu_and_mul}
    if hasattr(torch.ops._C, "silu_and_mul_with_clamp"):
        return found | {VLLM_CLAMP: silu_and_mul_with_clamp}, {}
    return found, {VLLM_CLAMP: "not part of this build"}


def load_vllm_library(device: torch.device) -> str | None:
    """Have vLLM's compiled library register its kernels; the reason if it cannot."""
    if registered():
        return None
    folder = folder_of("vllm")
    if folder is None:
        return "not installed"
    for name in library_names(device):
        if not (folder / name).exists():
            continue
        try:
            torch.ops.load_library(folder / name)  # type: ignore[no-untyped-call]
        except OSError as error:
            return f"installed, but its library does not load: {error}"
        if registered():
            return None
    return f"installed, but without kernels for {device.type}"


def folder_of(package: str) -> Path | None:
    """Where `package` is installed, without importing it; None if it is not."""
    specification = importlib.util.find_spec(package)
    found = specification.submodule_search_locations if specification else None
    return Path(found[0]) if found else None


def registered() -> bool:
    """Whether vLLM's kernels are known to torch."""
    return hasattr(torch.ops._C, "silu_and_mul")


def library_names(device: torch.device) -> tuple[str, ...]:
    """Files of vLLM that may hold the kernels, best first; a CPU must not be given instructions that it lacks."""
    if device.type == "cuda":
        return "_C_stable_libtorch.abi3.so", "_C.abi3.so"
    known = {"AVX512": "_C_AVX512.abi3.so", "AVX2": "_C_AVX2.abi3.so"}
    return tuple(known[name] for name in known if name == torch.backends.cpu.get_cpu_capability())


def silu_and_mul(inputs: Inputs) -> Tensor:
    """vLLM's kernel as vLLM calls it."""
    result = torch.empty_like(inputs.up)
    torch.ops._C.silu_and_mul(result, inputs.packed)
    return result


def silu_and_mul_with_clamp(inputs: Inputs) -> Tensor:
    """vLLM's kernel that also clamps its inputs to one scalar: not an edit of neurons, but near to it in work."""
    result = torch.empty_like(inputs.up)
    torch.ops._C.silu_and_mul_with_clamp(result, inputs.packed, HIGHEST_INPUT)
    return result


def liger_kernel() -> Kernel:
    """Liger's SwiGLU kernel, forward only."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def kernel(inputs: Inputs) -> Tensor:
        result: Tensor = LigerSiLUMulFunction.apply(inputs.gate, inputs.up)
        return result

    return kernel
