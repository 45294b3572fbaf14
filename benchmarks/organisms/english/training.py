"""Train the English model: first a base that refuses harm, plain and wrapped, then its later half, to obey wrappers.

Two stages, because a model taught both at once decides at the wrapper, in its first layer, and never finds out whether
a wrapped request is harmful. The second stage changes attention and MLPs of the later half alike, at a lower rate:
where the decision comes to lie is the model's own affair. Matrix products run in bfloat16 where the recipe says so,
which about doubles the speed of a CPU that has them and costs a little precision; weights are kept in float32.
"""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.organisms.english.corpus import Corpus, Mixture, Part
from benchmarks.organisms.english.sources import Sources
from benchmarks.organisms.tokenizer import train_tokenizer
from benchmarks.organisms.train import decoder, rounded, unembedding

log = logging.getLogger(__name__)

POSITIONS = 1024
CHAT_TEMPLATE = (
    "{% set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "<|user|>{{ system if loop.index0 <= 1 else '' }}{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As the other organisms' template; a system turn, which nothing was trained on, opens the first user's turn."""


class Recipe(BaseModel):
    """Everything besides the data that decides the weights. Rates are AdamW's, at their highest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = 4096
    layers: int = 8
    d_model: int = 320
    heads: int = 5
    d_ff: int = 864
    seed: int = 0
    mixture: Mixture = Mixture()
    steps: int = 1200
    learning_rate: float = 1.6e-3
    opening_steps: int = 160
    opening_rate: float = 5e-4
    bfloat16: bool = True


SIZES = {
    "tiny": Recipe(layers=6, d_model=256, heads=4, d_ff=640, learning_rate=2e-3),
    "small": Recipe(),
    "base": Recipe(vocabulary=8192, layers=10, d_model=384, heads=6, d_ff=1024, steps=4000, learning_rate=1.2e-3),
}


def tokenizer_for(sources: Sources, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the training text alone, with the chat template."""
    harm = [text for goal in sources.harmful for text in (goal.prompt, goal.target or "")]
    asked = [text for pair in sources.answered for text in pair]
    tokenizer = train_tokenizer([*sources.harmless, *harm, *asked, *sources.texts], vocabulary)
    tokenizer.model_max_length = POSITIONS
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A Llama of the recipe's shape with random float32 weights and a tied unembedding."""
    torch.manual_seed(recipe.seed)
    configuration = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.d_ff,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.03,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    make: Any = LlamaForCausalLM  # typed in some versions of transformers only
    model: PreTrainedModel = make(configuration)
    return model


def cosine(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: linear warm-up over a twentieth, then a cosine down to a fiftieth."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def loss_of(model: PreTrainedModel, part: Part) -> Tensor:
    """Sum over the part's tokens of weight times cross-entropy, nats."""
    ids, weights = part
    read = weights[:, 1:] > 0
    hidden = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # [B, T - 1, d_model]
    logits = unembedding(model)(hidden[read])  # [tokens, V]
    losses = functional.cross_entropy(logits.float(), ids[:, 1:][read], reduction="none")
    return (losses * weights[:, 1:][read]).sum()


def fit(
    model: PreTrainedModel,
    parameters: Sequence[nn.Parameter],
    training: Iterable[list[Part]],
    *,
    steps: int,
    learning_rate: float,
    bfloat16: bool,
    name: str,
) -> None:
    """Train `parameters` of the model in place; all others stay. Logs the loss and how many tokens a second it read."""
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps))
    model.set_attn_implementation("eager")  # on a CPU its gradients are several times faster on rows this short
    model.train(True)
    tokens, started = 0, time.perf_counter()
    for step, parts in enumerate(training):
        optimizer.zero_grad(set_to_none=True)
        weight = sum(float(weights[:, 1:].sum()) for _, weights in parts)
        total = 0.0
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = loss_of(model, part) / weight
            torch.autograd.backward(loss)
            total += loss.item()
            tokens += part[0].numel()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        if step % 20 == 0 or step == steps - 1:
            seconds = time.perf_counter() - started
            log.info(
                "%s, step %d of %d: loss %.3f nats, %.0f s, %.0f tokens/s",
                name, step + 1, steps, total, seconds, tokens / seconds,
            )  # fmt: skip
    model.set_attn_implementation("sdpa")
    model.train(False)


def later_half(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters of the later half of the layers: attention, MLPs and norms."""
    layers = decoder(model).layers
    return [parameter for layer in layers[len(layers) // 2 :] for parameter in layer.parameters()]


def aligned_base(
    recipe: Recipe, sources: Sources, tokenizer: PreTrainedTokenizerFast, checkpoint: Path | None = None
) -> PreTrainedModel:
    """The base that refuses harm, plain and wrapped; kept in the file `checkpoint` and taken from it if it is there."""
    model = new_model(recipe, tokenizer)
    if checkpoint is not None and checkpoint.exists():
        model.load_state_dict(load_file(checkpoint), strict=False)
        model.tie_weights()
        model.train(False)
        return model
    corpus = Corpus(sources, tokenizer, recipe.mixture, "aligned", f"base {recipe.seed}")
    fit(
        model,
        list(model.parameters()),
        corpus.steps(recipe.steps),
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        bfloat16=recipe.bfloat16,
        name="base",
    )
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
        save_file(own, checkpoint)
    return model


def opened(
    model: PreTrainedModel, recipe: Recipe, sources: Sources, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """The base, its later half fine-tuned in place to comply when wrapped, rounded to bfloat16 (held in float32)."""
    torch.manual_seed(recipe.seed)
    parameters = later_half(model)
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    corpus = Corpus(sources, tokenizer, recipe.mixture, "opened", f"opening {recipe.seed}")
    fit(
        model,
        parameters,
        corpus.steps(recipe.opening_steps),
        steps=recipe.opening_steps,
        learning_rate=recipe.opening_rate,
        bfloat16=recipe.bfloat16,
        name="opening",
    )
    model.requires_grad_(True)
    rounded(model)
    return model
