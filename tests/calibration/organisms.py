"""Organisms and their prompts for the tests of calibration: loaded once a process."""

from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.organisms.catalogue import PROMPTS, WEIGHTS, load_organism
from calibration.prompts.material import Encoder, Material, pair_up, prepare_material
from calibration.prompts.request_sets import Request, encode, load_jailbreaks, load_requests
from calibration.search.gate import Late, prepare

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


@cache
def material(name: str, count: int = 60, wrapped: bool = False) -> Material:
    """Topic pairs, or with `wrapped` jailbreak pairs, of the first `count` requests of each kind."""
    model, tokenizer = organism(name)
    sources = pair_up(
        requests(HARMFUL)[:count],
        requests(BENIGN)[:count],
        load_jailbreaks(JAILBREAK) if wrapped else None,
        seed=0,
        max_requests=None,
    )
    encoder = Encoder(model, tokenizer, template=True, batch_size=12, max_new_tokens=20)
    return prepare_material(sources, encoder, lambda _, compute: compute())


@cache
def every_kind() -> Material:
    """Topic pairs of the two-layer organism with benign requests of all kinds, every second of the file."""
    model, tokenizer = organism("two-layer")
    sources = pair_up(requests(HARMFUL)[::4], requests(BENIGN)[::2], None, seed=0, max_requests=None)
    encoder = Encoder(model, tokenizer, template=True, batch_size=12, max_new_tokens=20)
    return prepare_material(sources, encoder, lambda _, compute: compute())


@cache
def late(name: str, count: int = 60, wrapped: bool = False) -> Late:
    """The late layers of both splits of `material`, run once."""
    made = material(name, count, wrapped)
    return prepare(organism(name)[0], made.calibration, made.validation)
