"""What tests in every folder share: tiny random models."""

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import torch
from hypothesis import settings
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from guard.families.table import FAMILIES as FAMILY_TABLE
from tests.tiny_families import TINY, tiny_family

# Tiny models gain nothing from threads, and on a busy machine wait for each of them.
torch.set_num_threads(1)

# Machines that run other things at the same time miss any deadline now and then.
settings.register_profile("neuron-guard", deadline=None)
settings.load_profile("neuron-guard")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-family-table", action="store_true", help="write the table in docs/families.md from the outcomes"
    )
    parser.addoption(
        "--write-version-row", metavar="COMMAND", help="write this run, by COMMAND, into the README's table of versions"
    )


def pytest_configure(config: pytest.Config) -> None:
    from tests import family_table, version_table  # the first needs the families below

    config.pluginmanager.register(family_table.Recorder())
    config.pluginmanager.register(version_table.Recorder())


class Deprecations(logging.Handler):
    """Keeps what transformers and vLLM log of things that will go: each says it once a process, and in no warning."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower():
            self.messages.append(message)

    def listen(self) -> None:
        """Whoever configures logging anew, as vLLM does on its import, takes handlers off."""
        for name in ("transformers", "vllm"):
            logging.getLogger(name).addHandler(self)


DEPRECATIONS = Deprecations()
DEPRECATIONS.listen()


@pytest.fixture(autouse=True)
def no_deprecated_use() -> Iterator[None]:
    """Fails the test in which, or in whose fixtures, something deprecated of transformers or vLLM was first used."""
    DEPRECATIONS.listen()
    yield
    messages, DEPRECATIONS.messages = DEPRECATIONS.messages, []
    if messages:
        pytest.fail("; ".join(messages), pytrace=False)


class TinyModel(Protocol):
    """Makes a random causal language model in evaluation mode; the same arguments give the same weights."""

    def __call__(
        self,
        model_type: str = "llama",
        *,
        layers: int = 3,
        d_model: int = 24,
        d_ff: int = 37,
        vocabulary: int = 61,
        heads: int = 4,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **configuration: Any,
    ) -> PreTrainedModel: ...


# What Llama's configuration calls the sizes.
SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "vocab_size": "vocabulary",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "max_position_embeddings": "positions",
}
EVERY_FAMILY = tuple(sorted(FAMILY_TABLE))
MIXTURES = tuple(name for name in EVERY_FAMILY if FAMILY_TABLE[name].routes_to_experts)
SEEING = {name for name, family in TINY.items() if family.around is not None}  # each is another family with eyes
FAMILIES = tuple(name for name in EVERY_FAMILY if name not in MIXTURES and name not in SEEING)


def make_tiny_model(
    model_type: str = "llama",
    *,
    layers: int = 3,
    d_model: int = 24,
    d_ff: int = 37,
    vocabulary: int = 61,
    heads: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **configuration: Any,
) -> PreTrainedModel:
    """See TinyModel. Two heads share a key and value where the family can; weights so large that every neuron shows in
    the logits, biases and norms among them. Bloom's d_ff is 4 d_model by its code; that of shared experts is 41.
    """
    sizes = {
        "layers": layers,
        "d_model": d_model,
        "d_ff": d_ff,
        "vocabulary": vocabulary,
        "heads": heads,
        "key_value_heads": heads // 2,
        "positions": 256,
    }
    family = tiny_family(model_type)
    settings: dict[str, Any] = {family.names.get(name, name): sizes[size] for name, size in SIZES.items()}
    settings |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2}
    settings |= {**family.settings, **configuration}
    if family.around is not None:
        settings = {"text_config": settings, "pad_token_id": 0, **family.around}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(model_type, **settings),
            # the only one of transformers' ways through routed experts that knows float64
            **({"experts_implementation": "eager"} if model_type in MIXTURES else {}),
        )
        if family.stirred:
            _stir_constants(model)
    nn.Module.to(model, dtype)
    nn.Module.train(model, False)
    return model


@torch.no_grad()
def _stir_constants(model: nn.Module) -> None:
    """Move norms and biases off the zeros and ones that they begin as."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def tiny_model() -> TinyModel:
    """The factory of tiny random models."""
    return make_tiny_model
