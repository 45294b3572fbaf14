"""Load a causal language model and its tokenizer, with errors that say what to do.

The one file of guard that needs transformers to run, for commands that have no model yet; whoever serves a model that
is there already does not import it.
"""

import os
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from guard.errors import ModelLoadError
from guard.load_options import DeviceMap, Precision, WrittenPrecision

CANNOT_LOAD = (
    OSError,  # no such folder, file or hub name, or no connection
    ValueError,  # a configuration or tokenizer that transformers does not accept, or an architecture it does not know
    KeyError,  # an entry that the configuration lacks
    ImportError,  # a quantisation or a tokenizer whose package is not installed
    RuntimeError,  # weights of other shapes than the configuration's, or more than the device's memory
    SafetensorError,  # weights that are cut off or damaged
)


def own_devices() -> list[int]:
    """The CUDA devices that are this process's part, of those that all processes on this machine have in common."""
    devices = range(torch.cuda.device_count())
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if len(devices) < count:
        return [rank % len(devices)] if devices else []
    return list(devices[len(devices) * rank // count : len(devices) * (rank + 1) // count])


def own_memory() -> dict[int, int] | None:
    """Bytes of weights to put on each own device, by index, a tenth left for activations; None without a device."""
    return {device: int(0.9 * torch.cuda.mem_get_info(device)[0]) for device in own_devices()} or None


def choose_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is CUDA where there is one, else the CPU. Raises ModelLoadError.

    Of several processes on a machine each has a CUDA device of its own, as far as there are enough.
    """
    if name == "auto":
        return torch.device("cuda", own_devices()[0]) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelLoadError(f"{name!r} is no torch device: use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"{name} was asked for, but torch sees no CUDA device: use --device cpu.")
    return device


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: Precision | WrittenPrecision = "auto",
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at a path or hub name, in evaluation mode on its device, and its tokenizer.

    `dtype` "auto" is float32 on a CPU and the checkpoint's own elsewhere; "checkpoint" is its own everywhere. Code that
    comes with a model is never run. With a `device_map` the layers are spread over the devices that this process may
    use, and `device` is left to it. Raises ModelLoadError where either cannot be loaded, or does not fit.
    """
    place = choose_device(device)
    spread: dict[str, Any] = {} if device_map is None else {"device_map": device_map, "max_memory": own_memory()}
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype)
    if dtype == "auto" and place.type == "cpu":
        precision = torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=precision or "auto", trust_remote_code=False, **spread)
        if device_map is None:
            nn.Module.to(model, place)
    except CANNOT_LOAD as error:
        first_line = str(error).strip().partition("\n")[0]
        reason = f"cannot load {name!r} as a path or hub name of a causal language model: {first_line}"
        raise ModelLoadError(reason) from error
    if device_map is not None and any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise ModelLoadError(
            f"{name!r} does not fit onto the devices that there are, and a calibration reads its weights too often for "
            f"offloaded ones: use more devices, fewer processes or --dtype bfloat16."
        )
    model.train(False)
    return model, tokenizer
