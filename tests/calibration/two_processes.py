"""What calibration shares among processes, in as many as the environment says; each prints the results as JSON.

`python -m tests.calibration.two_processes` is run by `test_processes.py`, two at a time.
"""

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from calibration.effects.mediation import all_mediators, mediator_effects
from calibration.judging.behaviour import generate, median_surprise
from calibration.runs.launch import in_step
from calibration.runs.processes import Shared, in_shares, is_first
from calibration.runs.store import compute_anew
from tests.calibration.late_models import random_batch
from tests.conftest import make_tiny_model

TOKENIZER = cast(
    PreTrainedTokenizerBase,
    SimpleNamespace(pad_token_id=0, eos_token_id=7, decode=lambda row, **_: " ".join(map(str, row))),
)


class Found(BaseModel):
    values: list[float]
    tokens: list[list[int]]


def results() -> list[Any]:
    """What was found together, by the first alone and by the first on the way; and whether this is the first."""
    model = make_tiny_model(layers=3)
    decided: list[str] = []

    def together() -> Found:
        pairs = [(random_batch(place), random_batch(place + 10)) for place in range(3)]
        effects = mediator_effects(model, pairs, all_mediators(model))
        prompts = [tuple(range(1, 2 + place % 4)) for place in range(9)]
        said = generate(model, TOKENIZER, prompts, max_new_tokens=5, batch_size=2)
        surprise = median_surprise(model, prompts, said.tokens, pad_id=0, batch_size=2)
        indirect = torch.cat([each.natural_indirect for each in effects.values()]).tolist()
        return Found(values=indirect + surprise, tokens=[list(row) for row in said.tokens])

    def on_the_way() -> Found:
        return Found(values=[0.5], tokens=[])

    def by_the_first() -> Found:
        decided.append("here")
        empty: Callable[[Sequence[Any]], list[Any]] = list
        part = keep("part", Found, on_the_way)
        return Found(values=in_shares((1.0, 2.0, 3.0), empty) + part.values, tokens=[])

    keep = in_step(compute_anew)
    shared, own = keep("shared", Found, Shared(together)), keep("own", Found, by_the_first)
    kept = in_step(lambda _, __, compute: cast(Any, own))("kept", Found, Shared(together))
    if not is_first():
        assert decided == []
    return [shared.model_dump(), own.model_dump(), kept.model_dump(), is_first()]


if __name__ == "__main__":
    print(json.dumps(results()))  # noqa: T201
