"""An organism, its spec and its calibrated requests for the tests of conditions: made once a process."""

from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.safety.conditions.catalogue import conditions
from benchmarks.safety.conditions.condition import Calibrated, Condition
from benchmarks.safety.conditions.requests import Lesson, lesson
from calibration.prompts.material import Encoder
from calibration.prompts.request_sets import encode
from guard.spec.edit_spec import EditSpec
from tests.calibration.organisms import BENIGN, HARMFUL, organism, requests
from tests.serve.served import PLANTED, organism_spec

COUNT = 32
NAME = "two-layer"
conditions_of = partial(conditions, seed=0, allow_refuted=False, template=True)


@cache
def spec() -> EditSpec:
    return organism_spec()


@cache
def calibrated() -> Calibrated:
    return Calibrated(requests(HARMFUL)[:COUNT], requests(BENIGN)[:COUNT])


@cache
def encoder() -> Encoder:
    return Encoder(*organism(NAME), template=True, batch_size=16, max_new_tokens=20)


@cache
def lessons() -> Lesson:
    return lesson(encoder(), calibrated(), seed=0)


@cache
def built() -> tuple[dict[str, Condition], frozenset[str]]:
    """Every condition by name, and the requests that were templated to make them."""
    asked: set[str] = set()
    model, tokenizer = organism(NAME)
    template = tokenizer.apply_chat_template

    def noting(turns: Any, **more: Any) -> Any:
        asked.update(turn["content"] for turn in turns)
        return template(turns, **more)

    planted = {int(layer): neurons for layer, neurons in PLANTED.items()}
    with patch.object(tokenizer, "apply_chat_template", noting):
        found = conditions_of(model, tokenizer, spec(), calibrated(), planted=planted)
    return {one.name: one for one in found}, frozenset(asked)


def everything() -> dict[str, Condition]:
    """Every condition by name."""
    return built()[0]


def prompts(file: str, first: int, last: int) -> list[tuple[int, ...]]:
    """Some templated requests of a file, as token ids."""
    return [encode(organism(NAME)[1], request.prompt, template=True) for request in requests(file)[first:last]]


@torch.inference_mode()
def logits(ids: tuple[int, ...] | None = None) -> Tensor:
    """The organism's logits as it is now on one prompt, a harmful one unless another is given."""
    row: Any = torch.tensor([prompts(HARMFUL, 200, 201)[0] if ids is None else ids])
    found: Tensor = organism(NAME)[0](input_ids=row, use_cache=False).logits
    return found
