"""The refusal direction, added (Arditi et al. 2024, arXiv 2406.11717).

The difference between the mean residual streams of refused harmful requests and of benign ones, at the last prompt
token of one layer, is added at that layer to every token. Which layer and how much of it is chosen on validation
requests. It is only ever added, never taken away: the multiples are above 0.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from benchmarks.localisation.peers.contender import Contender
from benchmarks.localisation.peers.vectors import added, at_last_prompt_token, states
from calibration.prompts.sequences import Batch

MULTIPLES = (0.125, 0.25, 0.5, 1.0, 2.0)


def candidates(model: nn.Module, refused: Sequence[Batch], benign: Sequence[Batch]) -> list[Contender]:
    """Every layer but the last with every multiple.

    Where the model refuses nothing, harmful requests that it answers have to stand for the refused ones.
    """
    harmful, harmless = states(model, refused), states(model, benign)
    made = []
    for layer in harmful:
        direction = at_last_prompt_token(harmful[layer]).mean(0) - at_last_prompt_token(harmless[layer]).mean(0)
        for multiple in MULTIPLES:
            installed = partial(added, model, {layer: multiple * direction})
            made.append(Contender(f"{multiple:g} x layer {layer}", installed))
    return made
