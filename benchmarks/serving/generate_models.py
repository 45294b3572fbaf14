"""A random-weight model of every family whose MLP is laid out like Llama's, all of one size.

Weights do not matter for speed, shapes do. The vocabulary is small, so that the unembedding does not hide what the
guard costs. Sliding windows are left out: within a window attention is the same without, and the static cache of a
windowed layer counts in Python, which would compile again at every token.
"""

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, StaticCache

from guard.families.table import FAMILIES as TABLE
from guard.spec.edit_spec import LayerEdit

CONTEXT = 64
LLAMA = TABLE["llama"]
FAMILIES = tuple(
    name
    for name, family in TABLE.items()
    if (family.layers, family.input_projections) == (LLAMA.layers, LLAMA.input_projections)
)


class Size(BaseModel):
    """The size of the models, and how much of them is guarded; by default a small GPT-2's, the smallest in use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = 768
    d_ff: int = 2688
    layers: int = 12
    heads: int = 12
    vocabulary: int = 8192
    guarded_layers: tuple[int, ...] = (10, 11)
    edited: float = 0.01

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.heads


def make_model(model_type: str, size: Size, *, seed: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A random causal language model of the family, in evaluation mode; it never stops by itself."""
    usual = AutoConfig.for_model(model_type)
    own: dict[str, Any] = {}
    if "sliding_attention" in getattr(usual, "layer_types", ()):
        own["layer_types"] = ["full_attention"] * size.layers
    elif getattr(usual, "sliding_window", None) is not None:
        own["sliding_window"] = None
    configuration = AutoConfig.for_model(
        model_type,
        **{
            "hidden_size": size.d_model,
            "intermediate_size": size.d_ff,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads // 2,
            "head_dim": size.head_dim,
            "vocab_size": size.vocabulary,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
            **own,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    nn.Module.to(model, device=device, dtype=dtype)
    nn.Module.eval(model).requires_grad_(False)
    return model


def edits(size: Size, *, seed: int) -> list[LayerEdit]:
    """The edit of every guarded layer: random neurons held between 0.5 and 1, where none of a random model's lie."""
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(size.edited * size.d_ff))

    def one(layer: int) -> LayerEdit:
        neurons = tuple(torch.randperm(size.d_ff, generator=generator)[:count].sort().values.tolist())
        ones = (1.0,) * count
        return LayerEdit(layer=layer, neurons=neurons, scale=ones, lower=(0.5,) * count, upper=ones)

    return [one(layer) for layer in size.guarded_layers]


def static_cache(model: PreTrainedModel, size: Size) -> StaticCache:
    """A cache of fixed size that is there before the first token: made by it, it would compile a graph of its own."""
    cache = StaticCache(config=model.config, max_cache_len=CONTEXT)
    heads = model.config.num_key_value_heads
    cache.early_initialization(1, heads, size.head_dim, model.dtype, model.device)
    return cache
