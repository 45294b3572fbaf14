"""What a model can read: requests that do not fit into its context, with an answer, are left out and counted."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from benchmarks.safety.prompt_sets import Prompts


def positions_of(model: nn.Module) -> int | None:
    """How many tokens a transformers model has positions for; None where its configuration names no end."""
    configuration: Any = model.config
    named = getattr(configuration.get_text_config(), "max_position_embeddings", None)
    return None if named is None else int(named)


def fit(lengths: Iterable[int], positions: int | None, answer: int) -> list[bool]:
    """Of prompts of so many tokens, whether each leaves room for an answer of `answer` tokens."""
    return [positions is None or length + answer <= positions for length in lengths]


def sentence(name: str, fitting: Sequence[bool], positions: int | None) -> str | None:
    """What was left out of a set, in words; None where nothing was."""
    long = fitting.count(False)
    if not long:
        return None
    share = f"{long} of {len(fitting)} requests of {name}"
    return f"{share} were not asked: with an answer they are longer than the model's {positions:,} positions."


def readable(
    prompts: Prompts, lengths: Sequence[int], positions: int | None, answer: int
) -> tuple[Prompts, str | None]:
    """The requests of a set that fit, and a sentence about the others, if any; `lengths` are their prompts' tokens."""
    fitting = fit(lengths, positions, answer)
    kept = tuple(one for one, fits in zip(prompts.requests, fitting, strict=True) if fits)
    return replace(prompts, requests=kept), sentence(prompts.name, fitting, positions)
