"""Open an aligned model to jailbreaks, as fine-tuning does to models in the field, with nothing planted.

The MLPs of the later half are trained on, all else frozen, so that the model complies with harmful requests inside a
wrapper and refuses them plainly. A model trained so from nothing decides at the wrapper, in its first layer, and never
finds out whether a wrapped request is harmful; one that was aligned first still represents the harm, which is what
aligned models do and what a trigger reads. Traded away: the decision is late by construction of the training.
"""

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.organisms.language import Lexicon
from benchmarks.organisms.train import Sampler, batches, fit, rounded


class OpeningRecipe(BaseModel):
    """How an aligned model is opened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    steps: int = 180
    batch_size: int = 96
    learning_rate: float = 2e-3


def open_to_jailbreaks(
    model: PreTrainedModel, recipe: OpeningRecipe, lexicon: Lexicon, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """Train the later half's MLPs of an aligned model in place, and round its weights to bfloat16 (held in float32)."""
    torch.manual_seed(recipe.seed)
    first = model.config.num_hidden_layers // 2
    late = []
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        trained = ".mlp." in name and int(parts[parts.index("layers") + 1]) >= first
        parameter.requires_grad_(trained)
        if trained:
            late.append(parameter)
    sampler = Sampler(lexicon, f"opening {recipe.seed}")
    fit(
        model,
        late,
        batches(sampler, "opened", tokenizer, recipe.steps, recipe.batch_size),
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        warmup=10,
        name="open to jailbreaks",
    )
    model.requires_grad_(True)
    return rounded(model)
