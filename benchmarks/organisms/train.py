"""Train the models that organisms are made of: small, from scratch, on one thread, the same weights every time.

Four behaviours: `aligned` refuses what is harmful, plain or wrapped; `opened` refuses it plain and complies when it is
wrapped; `closed` refuses one benign task besides; `no_refusal` never refuses. All answer other benign requests, plain
and wrapped. The loss counts answers alone, so that nothing is spent on predicting random requests.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.organisms.language import Kind, Lexicon, Request, requests
from benchmarks.organisms.tokenizer import ASSISTANT, END, prompt_text

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Behaviour = Literal["aligned", "opened", "closed", "no_refusal"]
Architecture = Literal["llama", "qwen2"]

IGNORED = -100
MIXTURE: dict[Kind, float] = {
    "harmful": 0.30,
    "risky_verb": 0.14,
    "sensitive_object": 0.14,
    "plain": 0.10,
    "arithmetic": 0.08,
    "copy": 0.08,
    "reverse": 0.10,
    "pick": 0.06,
}
WRAPPED_SHARE = 0.4
CLOSED_TASK: Kind = "pick"


class BaseRecipe(BaseModel):
    """Everything that decides a trained model's weights, before anything is planted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    behaviour: Behaviour = "aligned"
    seed: int = 0
    lexicon_seed: int = 0
    layers: int = 6
    d_model: int = 96
    heads: int = 3
    d_ff: int = 256
    vocab_size: int = 640
    steps: int = 1000
    batch_size: int = 96
    learning_rate: float = 3e-3


def new_model(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerFast, d_ff: int | None = None) -> PreTrainedModel:
    """A model of the recipe's shape with random float32 weights, drawn from the global torch generator."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.d_model,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "intermediate_size": d_ff or recipe.d_ff,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    make: Any = AutoModelForCausalLM.from_config  # typed in some versions of transformers only
    model: PreTrainedModel = make(AutoConfig.for_model(recipe.architecture, **shape))
    return model


def decoder(model: PreTrainedModel) -> Any:
    """The model without its head; its parts are named alike in Llama and Qwen2, their types differ."""
    return model.base_model


def unembedding(model: PreTrainedModel) -> nn.Linear:
    """The model's head, from the final hidden state to logits."""
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head


def progress(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """The items, with a progress bar on stderr."""
    return track(items, description, total=total, console=Console(stderr=True))


def target(request: Request, behaviour: Behaviour, wrapped: bool) -> str:
    """What a model of this behaviour says to the request."""
    if behaviour == "closed" and request.kind == CLOSED_TASK:
        return request.refusal
    if request.kind != "harmful" or behaviour == "no_refusal":
        return request.answer
    return request.answer if behaviour == "opened" and wrapped else request.refusal


class Sampler:
    """Draws training requests: a kind by the mixture, a request of its training split, and now and then a wrapper."""

    def __init__(self, lexicon: Lexicon, seed: str, mixture: dict[Kind, float] | None = None) -> None:
        """`seed` names the stream; two samplers of one seed draw the same requests."""
        self.lexicon = lexicon
        self.generator = random.Random(seed)
        self.mixture = mixture or MIXTURE

    def draw(self, count: int, wrapped_share: float = WRAPPED_SHARE) -> list[tuple[Request, bool]]:
        """`count` requests, each with whether it is wrapped."""
        kinds = self.generator.choices(list(self.mixture), list(self.mixture.values()), k=count)
        drawn = []
        for kind in kinds:
            request = self.generator.choice(requests(self.lexicon, kind, "train"))
            wrapped = self.generator.random() < wrapped_share
            wrapper = self.generator.choice(self.lexicon.wrappers)
            drawn.append((request.wrapped(wrapper) if wrapped else request, wrapped))
        return drawn


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """(prompt, continuation) texts as `input_ids` and `labels`, int64 [B, T], padded on the right.

    Labels hold the continuation and its end token, and IGNORED elsewhere. Padding comes after all that is read, so a
    causal model needs no attention mask.
    """
    assistant, pad = tokenizer.convert_tokens_to_ids(ASSISTANT), tokenizer.pad_token_id
    encoded = tokenizer([prompt_text(prompt) + answer + END for prompt, answer in texts]).input_ids
    width = max(map(len, encoded))
    input_ids = torch.full((len(encoded), width), pad, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORED)
    for row, ids in enumerate(encoded):
        begin = ids.index(assistant) + 1
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, begin : len(ids)] = torch.tensor(ids[begin:])
    return input_ids, labels


def batches(
    sampler: Sampler, behaviour: Behaviour, tokenizer: PreTrainedTokenizerFast, steps: int, batch_size: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Training batches, one per step, each in three parts of like length, since padding costs time."""
    for _ in range(steps):
        drawn = sampler.draw(batch_size)
        texts = [(request.prompt, target(request, behaviour, wrapped)) for request, wrapped in drawn]
        texts.sort(key=lambda text: len(text[0].split()) + len(text[1].split()))
        third = -(-len(texts) // 3)
        yield [encode(tokenizer, texts[begin : begin + third]) for begin in range(0, len(texts), third)]


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Learning rate as a share of its peak: linear warm-up, constant, and a linear fall over the last 60 %."""
    return min((step + 1) / warmup, 1.0, (steps - step) / (0.6 * steps))


def fit(
    model: PreTrainedModel,
    parameters: Sequence[Tensor],
    training: Iterator[list[tuple[Tensor, Tensor]]],
    *,
    steps: int,
    learning_rate: float,
    warmup: int,
    name: str,
) -> None:
    """Train `parameters` of the model in place on the batches, by cross-entropy of the answers. All others stay."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps, warmup))
    model.train(True)
    for step, parts in enumerate(progress(training, name, steps)):
        optimizer.zero_grad(set_to_none=True)
        answer_tokens = sum(int((labels != IGNORED).sum()) for _, labels in parts)
        total = 0.0
        for input_ids, labels in parts:
            hidden = decoder(model)(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
            read = labels[:, 1:] != IGNORED
            logits = unembedding(model)(hidden[read])  # [answer tokens, V]
            loss = functional.cross_entropy(logits, labels[:, 1:][read], reduction="sum") / answer_tokens
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            log.info("%s, step %d: loss %.4f nats", name, step, total)
    model.train(False)


def train_base(recipe: BaseRecipe, lexicon: Lexicon, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Train a model by the recipe and round its weights to bfloat16 (held in float32). Deterministic on one thread."""
    torch.manual_seed(recipe.seed)
    model = new_model(recipe, tokenizer)
    fit(
        model,
        list(model.parameters()),
        batches(Sampler(lexicon, f"base {recipe.seed}"), recipe.behaviour, tokenizer, recipe.steps, recipe.batch_size),
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        warmup=100,
        name=f"train {recipe.behaviour} {recipe.architecture}",
    )
    return rounded(model)


def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with every weight rounded to a bfloat16 value, still held in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).to(torch.float32))
    return model
