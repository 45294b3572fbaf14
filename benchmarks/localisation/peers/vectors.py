"""Residual streams of requests as points, and a vector added to every token of a residual stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from calibration.prompts.sequences import Batch
from calibration.runs.layer_calls import changed_output
from calibration.search.trigger import TokenStates, entering_states
from guard.families.architectures import architecture_of


def states(model: nn.Module, batches: Sequence[Batch], *, both_rows: bool = False) -> dict[int, TokenStates]:
    """Residual streams leaving each layer but the last, by that layer: of compliance rows, or of all rows in turn."""
    layers = range(1, architecture_of(model).num_layers(model))
    entering = entering_states(model, batches, layers, compliance_only=not both_rows)
    return {layer - 1: found for layer, found in entering.items()}


def compliance_rows(batches: Sequence[Batch]) -> Tensor:
    """Which of the rows of all batches, in turn, carry the compliance: bool [N]."""
    return torch.cat([torch.arange(2 * batch.size) < batch.size for batch in batches])


def at_last_prompt_token(found: TokenStates) -> Tensor:
    """[N, d_model], float32."""
    return found.states[torch.arange(len(found.decisive)), found.decisive].float()


def over_prompt(found: TokenStates) -> Tensor:
    """Mean over the tokens of each prompt, [N, d_model], float32."""
    return _mean(found, torch.arange(found.mask.shape[1])[None] <= found.decisive[:, None])


def over_response(found: TokenStates) -> Tensor:
    """Mean over the tokens of each forced response, [N, d_model], float32."""
    return _mean(found, torch.arange(found.mask.shape[1])[None] > found.decisive[:, None])


def _mean(found: TokenStates, tokens: Tensor) -> Tensor:
    meant = (tokens & found.mask)[..., None].float()  # [N, T, 1]
    return (found.states.float() * meant).sum(1) / meant.sum(1)


@contextmanager
def added(model: nn.Module, vectors: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the block, `vectors[layer]` [d_model] is added to the residual stream that leaves each layer named."""
    layers = architecture_of(model).decoder_layers(model)

    def plus(vector: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda stream: stream + vector.to(stream)

    with ExitStack() as stack:
        for layer, vector in vectors.items():
            stack.enter_context(changed_output(layers[layer], layers[layer], plus(vector)))
        yield
