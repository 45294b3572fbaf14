"""A quick fingerprint of a model's weights, which what is kept of a run is bound to."""

import hashlib

import torch
from torch import nn

WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
