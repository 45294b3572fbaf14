"""A model from disk or the hub, with its guard on, or one sentence that says why not."""

from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from guard import EditSpec
from serve.hf.guarded import GuardedModel
from serve.http.errors import StartError
from serve.settings import Settings
from serve.signing import require_signature

# what transformers raises for folders that hold no model, or one that it cannot run
CANNOT_LOAD = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, SafetensorError)


def load_guarded(settings: Settings) -> GuardedModel:
    """The model that `settings` names, guarded with their spec; every reason against it is a NeuronGuardError."""
    spec = load_spec(settings)  # before the model, which may take minutes
    model, tokenizer = load_model(settings.model, device=settings.device, dtype=settings.dtype)
    return GuardedModel.install(model, tokenizer, spec, allow_refuted=settings.allow_refuted)


def reload_guarded(guarded: GuardedModel, settings: Settings) -> GuardedModel:
    """The model with the spec that is in the file by now; every reason against it is a NeuronGuardError, and the guard
    is then as it was.
    """
    return guarded.exchanged(load_spec(settings), allow_refuted=settings.allow_refuted)


def load_spec(settings: Settings) -> EditSpec:
    """The spec that `settings` name, if they let it serve; every reason against it is a NeuronGuardError."""
    key = settings.require_signature
    spec = EditSpec.load(settings.spec) if key is None else require_signature(settings.spec, key)
    if spec.evidence.verdict.outcome == "refuted" and not settings.allow_refuted:
        raise StartError(
            f"the verdict of {settings.spec} is refuted: {'; '.join(spec.evidence.verdict.reasons)}. "
            "Only --allow-refuted serves it all the same."
        )
    return spec


def load_model(
    name: str, *, device: str, dtype: Literal["auto", "float32", "bfloat16"]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at a path or hub name in evaluation mode on `device`, and its tokenizer; StartError if there is none.

    `dtype` "auto" is float32 on a CPU and the checkpoint's own elsewhere. Code that comes with a model is never run.
    """
    place = _device(device)
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype)
    if precision is None and place.type == "cpu":
        precision = torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=precision or "auto")
    except CANNOT_LOAD as error:
        reason = str(error).strip().partition("\n")[0]
        raise StartError(f"{name!r} cannot be loaded as a causal language model: {reason}") from error
    nn.Module.to(model, place)
    model.train(False)
    return model, tokenizer


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StartError(f"{name!r} is no torch device: use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StartError(f"{name} was asked for, but torch sees no CUDA device.")
    return device
