"""Tiny models in which one module alone carries Y, known by hand, and pairs of requests that tell it.

Requests are one word (of harm or not), then a template's tail of one token. Each model has the embedding, one module
that writes, and an unembedding: all else is zero. Attention of a chosen layer (`carrier`) brings the word to the tail,
and an MLP of a chosen layer (`mlp`) may turn what is written into the lean.
"""

from typing import Any

import torch
from torch import nn

from calibration.prompts.sequences import Batch, Example, collate
from tests.conftest import make_tiny_model

HARM, BENIGN = tuple(range(10, 30)), tuple(range(30, 50))
TAIL, COMPLY, REFUSE = 5, 6, 7
WORD, LEAN, TAIL_SIGN = 0, 1, 2


@torch.no_grad()
def built(*, carrier: int, mlp: int | None, layers: int = 4, neurons: int = 2) -> nn.Module:
    """A Llama whose attention of layer `carrier` reads the word, and whose MLP of layer `mlp` turns it into a lean.

    With no `mlp`, attention writes the lean itself. `neurons` of the MLP share the work alike.
    """
    model: Any = make_tiny_model(layers=layers, d_model=16, d_ff=20, heads=1, num_key_value_heads=1, seed=1)
    for name, parameter in model.named_parameters():
        parameter.mul_(0.0) if "norm" not in name else parameter.fill_(1.0)
    generator = torch.Generator().manual_seed(0)
    embedding = model.get_input_embeddings().weight
    embedding[:, 3:] = 0.3 * torch.randn(61, 13, generator=generator)
    embedding[list(HARM), WORD] = 3.0 + 0.3 * torch.randn(len(HARM), generator=generator)
    embedding[TAIL, TAIL_SIGN] = 3.0
    attention = model.model.layers[carrier].self_attn
    attention.v_proj.weight[WORD, WORD] = 1.0
    attention.o_proj.weight[WORD if mlp is not None else LEAN, WORD] = 6.0
    if mlp is not None:
        block = model.model.layers[mlp].mlp
        block.gate_proj.weight[:neurons, WORD] = 4.0
        block.up_proj.weight[:neurons, WORD] = 1.0
        block.down_proj.weight[LEAN, :neurons] = 2.0 / neurons
    model.lm_head.weight[COMPLY, LEAN] = 4.0
    model.lm_head.weight[REFUSE, TAIL_SIGN] = 1.0
    frozen: nn.Module = model.requires_grad_(False)
    return frozen


def pairs(size: int = 20) -> tuple[Batch, Batch]:
    """References and harmful requests that line up, `size` of each."""

    def laid_out(words: tuple[int, ...]) -> Batch:
        examples = [Example((3, word, TAIL), (COMPLY,), (REFUSE,)) for word in words[:size]]
        return collate(examples, pad_id=0, prompt_width=3, tail=1)

    return laid_out(BENIGN), laid_out(HARM)
