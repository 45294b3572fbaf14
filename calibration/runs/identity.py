"""What a model and its tokenizer are, as digests that everything kept of a run is bound to."""

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from guard.spec.fingerprint import chat_template_digest, tokenizer_digest

WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# entries of a configuration that say where it came from, and decide nothing
ORIGIN = {"_name_or_path", "transformers_version"}


def identity(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Digests, by name, of all in a model and its tokenizer that decides what the model says; "" for what is not there.

    The weights (`weights_digest`), the model's configuration, that of its generation, the tokenizer, and its chat
    template.
    """
    return {
        "weights": weights_digest(model),
        "configuration": configuration_digest(getattr(model, "config", None)),
        "generation": configuration_digest(getattr(model, "generation_config", None)),
        "tokenizer": tokenizer_digest(tokenizer),
        "chat_template": chat_template_digest(tokenizer) or "",
    }


def configuration_digest(configuration: Any) -> str:
    """Sha256, in hex, of a configuration's entries but for those that say where it came from; "" for None."""
    if configuration is None:
        return ""
    entries = {name: value for name, value in configuration.to_dict().items() if name not in ORIGIN}
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """A quick fingerprint of all weights, so that what was kept of one model is never taken up for another: of each
    parameter the sum of its bits, which any one weight changes, and a sample, which their order changes.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights = parameter.detach().contiguous()
        total = int(weights.view(WHOLE_NUMBERS[weights.element_size()]).sum(dtype=torch.int64))
        sample = weights.flatten()[:: max(1, weights.numel() // 64)].float().cpu()
        digest.update(f"{name} {tuple(weights.shape)} {total}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
