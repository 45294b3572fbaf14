"""Organisms and their prompts for the tests of calibration: loaded once a process."""

from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.organisms.catalogue import PROMPTS, WEIGHTS, load_organism
from calibration.prompts import Request, encode, load_requests

HARMFUL, BENIGN, JAILBREAK = (str(PROMPTS / f"{name}.jsonl") for name in ("harmful", "benign", "jailbreak"))


def organism_path(name: str) -> str:
    return str(WEIGHTS / name)


@cache
def organism(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer; shared, so a test leaves the model as it found it."""
    model, tokenizer, _ = load_organism(name)
    return model, tokenizer


@cache
def requests(file: str) -> tuple[Request, ...]:
    return load_requests(file).requests


def prompts(file: str, count: int) -> tuple[tuple[int, ...], ...]:
    """The first `count` requests of a prompt file as templated token ids."""
    _, tokenizer = organism("two-layer")
    return tuple(encode(tokenizer, request.prompt, template=True) for request in requests(file)[:count])
