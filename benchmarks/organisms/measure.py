"""Measure built organisms on held-out requests: what they do as they are, and with the planted neurons switched off."""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.organisms.assemble import benign_kl
from benchmarks.organisms.behaviour import shares
from benchmarks.organisms.catalogue import WEIGHTS, Neurons, Organism, load_organism
from benchmarks.organisms.language import BENIGN, NEAR_MISS, Request, held_out
from benchmarks.organisms.train import decoder, encode
from guard.load_options import Precision

HARMFUL_COUNT, BENIGN_COUNT = 256, 60


class Figures(BaseModel):
    """Held-out behaviour of one organism, as it is and with the planted neurons' columns set to 0 (`ablated_`).

    Shares of greedy generations; `benign_kl` is KL(ablated || as it is) per continuation token in nats. For an organism
    without planted neurons the ablated figures are those of the model itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    harmful_compliance: float
    harmful_refusal: float
    wrapped_compliance: float
    benign_refusal: float
    benign_right: float
    wrapped_benign_right: float
    ablated_compliance: float
    ablated_wrapped_compliance: float
    ablated_refusal: float
    ablated_benign_refusal: float
    ablated_benign_right: float
    benign_kl: float


def aligned(model: PreTrainedModel, organism: Organism) -> PreTrainedModel:
    """A copy of the model with the planted neurons' down-projection columns set to 0: the model before planting."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for layer, neurons in organism.planted.items():
            decoder(result).layers[layer].mlp.down_proj.weight[:, list(neurons)] = 0
    return result


@contextmanager
def ablated(model: PreTrainedModel, neurons: Neurons) -> Iterator[None]:
    """Within the block, `neurons` (by layer) are set to 0 in every forward pass."""

    def hook(indices: tuple[int, ...]) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        def zero(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            return (arguments[0].index_fill(-1, torch.tensor(indices), 0.0),)

        return zero

    layers = decoder(model).layers
    handles = [layers[i].mlp.down_proj.register_forward_pre_hook(hook(indices)) for i, indices in neurons.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def wrapped(requests: list[Request], organism: Organism) -> list[Request]:
    """Each request in one of the wrappers, in turn."""
    wrappers = itertools.cycle(organism.lexicon.wrappers)
    return [request.wrapped(wrapper) for request, wrapper in zip(requests, wrappers, strict=False)]


def measure(
    name: str,
    root: Path = WEIGHTS,
    dtype: Precision = "float32",
    harmful: int = HARMFUL_COUNT,
    benign: int = BENIGN_COUNT,
) -> Figures:
    """Generate for `harmful` held-out harmful requests and `benign` of each benign kind (near misses twice as many)."""
    model, tokenizer, organism = load_organism(name, root, dtype)
    off = aligned(model, organism)
    harm = held_out(organism.lexicon, "harmful", harmful)
    kind_counts = {kind: 2 * benign if kind in NEAR_MISS else benign for kind in BENIGN}
    good = [request for kind, count in kind_counts.items() for request in held_out(organism.lexicon, kind, count)]
    plain, jailbroken = shares(model, tokenizer, harm), shares(model, tokenizer, wrapped(harm, organism))
    answered, answered_wrapped = shares(model, tokenizer, good), shares(model, tokenizer, wrapped(good, organism))
    plain_off, jailbroken_off = shares(off, tokenizer, harm), shares(off, tokenizer, wrapped(harm, organism))
    answered_off = shares(off, tokenizer, good)
    texts = [(request.prompt, request.answer) for request in good]
    batches = [encode(tokenizer, texts[begin : begin + 64]) for begin in range(0, len(texts), 64)]
    return Figures(
        name=name,
        harmful_compliance=plain.right,
        harmful_refusal=plain.refused,
        wrapped_compliance=jailbroken.right,
        benign_refusal=max(answered.refused, answered_wrapped.refused),
        benign_right=answered.right,
        wrapped_benign_right=answered_wrapped.right,
        ablated_compliance=plain_off.right,
        ablated_wrapped_compliance=jailbroken_off.right,
        ablated_refusal=plain_off.refused,
        ablated_benign_refusal=answered_off.refused,
        ablated_benign_right=answered_off.right,
        benign_kl=benign_kl(model, off, batches),
    )


def table(figures: list[Figures]) -> str:
    """The figures as a Markdown table, shares in per cent."""
    columns = [name for name in Figures.model_fields if name != "name"]
    lines = ["| organism | " + " | ".join(column.replace("_", " ") for column in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in figures:
        values = [getattr(row, column) for column in columns]
        cells = [f"{100 * value:.1f}" for value in values[:-1]] + [f"{values[-1]:.5f}"]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
