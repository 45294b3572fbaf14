"""What is served in `neuron-guard bench serving`: one random-weight model, its edits, and three ways to serve it.

*absent*: the plain model. *idle*: the guard is installed and its trigger never fires. *active*: it fires at every
token, the most that a guard can cost. Both guarded ways pay for the trigger's read-out; where the engine is ours, for
counting too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.serving.generate_models import CONTEXT, Size, edits
from guard.spec.edit_spec import EditSpec, Estimate, Evidence, HeldOut, LayerEdit, OffOn, Provenance, Trigger, Verdict
from guard.spec.fingerprint import fingerprint

Arm = Literal["absent", "idle", "active"]
ARMS: tuple[Arm, ...] = ("absent", "idle", "active")
PROMPT_TOKENS, NEW_TOKENS = 24, 32
THRESHOLDS: dict[Arm, float] = {"idle": 1e30, "active": -1e30}
ON_CPU = Size()
ON_CUDA = Size(d_model=4096, d_ff=14336, layers=32, heads=32, vocabulary=32000, guarded_layers=(30, 31))
MODEL_FOLDER = "model"
NOTHING = Estimate(value=0.0, low=0.0, high=0.0, n=0)
SAME = OffOn(off=NOTHING, on=NOTHING)


class Timing(NamedTuple):
    """Seconds of one round: until all requests are answered; medians over requests until the first token, and from one
    token to the next.
    """

    total: float
    first_token: float
    per_token: float

    @classmethod
    def of(cls, total: float, first: list[float], last: list[float], tokens: int) -> "Timing":
        """From the seconds at which each request had its `first` and its `last` of `tokens` tokens."""
        gaps = (np.array(last) - np.array(first)) / (tokens - 1)
        return cls(total, float(np.median(first)), float(np.median(gaps)))


class Served(Protocol):
    """An engine that can serve all three ways; `name` is its own."""

    name: str

    def round(self, arm: Arm, prompts: list[list[int]]) -> Timing:
        """Answer `prompts`, which arrive at once, with NEW_TOKENS tokens each."""

    def tokens(self, arm: Arm, prompts: list[list[int]]) -> list[list[int]]:
        """The answers themselves."""

    def close(self) -> None:
        """Let everything go."""


def size_for(device: torch.device) -> Size:
    """A model that the device is meant for."""
    return ON_CUDA if device.type == "cuda" else ON_CPU


def prompts_for(batch: int, size: Size, *, seed: int) -> list[list[int]]:
    """Random prompts: new ones for each round, so that no cache has them."""
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = torch.randint(1, size.vocabulary, (batch, PROMPT_TOKENS), generator=generator).tolist()
    return prompts


def trigger_for(arm: Arm, size: Size) -> Trigger:
    """A trigger that reads layer 1, and fires always or never."""
    return Trigger(
        layer=1,
        direction=(1.0,) * size.d_model,
        threshold=THRESHOLDS[arm],
        false_trigger_rate=1.0,
        calibration_size=0,
    )


def spec_for(arm: Arm, size: Size, model: PreTrainedModel, *, seed: int) -> EditSpec:
    """The spec of a way of serving."""
    return unmeasured_spec(model, edits(size, seed=seed), trigger_for(arm, size), seed=seed)


def unmeasured_spec(
    model: PreTrainedModel,
    edited: Sequence[LayerEdit],
    trigger: Trigger,
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> EditSpec:
    """A spec that says of itself that nothing was measured: it is served by name alone."""
    return EditSpec(
        schema_version=1,
        model=fingerprint(model, [edit.layer for edit in edited], tokenizer),
        layers=tuple(edited),
        trigger=trigger,
        provenance=Provenance(versions={}, seed=seed, data={}, arguments={}),
        evidence=Evidence(
            contrasts=("topic",),
            outcome_harmful=NOTHING,
            outcome_reference=NOTHING,
            total_effect=NOTHING,
            mediators=(),
            neurons=(),
            set_sizes=(),
            trials=(),
            held_out=HeldOut(
                harmful_compliance=SAME,
                benign_refusal=SAME,
                harmful_garbled=SAME,
                benign_garbled=SAME,
                benign_kl=NOTHING,
                benign_first_token_kl=NOTHING,
                random_gates=(),
            ),
            verdict=Verdict(outcome="refuted", reasons=("it was made to be timed",), p_value=1.0, margin=0.0),
        ),
    )


def save(folder: Path, size: Size, model: PreTrainedModel, *, seed: int) -> None:
    """Write the model, with a tokenizer of single words, to `model` in `folder`; the specs `idle.safetensors` and
    `active.safetensors` beside it, where vLLM does not take them for weights.
    """
    model.save_pretrained(folder / MODEL_FOLDER)
    vocabulary = {f"t{token}": token for token in range(size.vocabulary)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))  # noqa: S106 (a token, not a password)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=CONTEXT)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder / MODEL_FOLDER)
    for arm in THRESHOLDS:
        spec_for(arm, size, model, seed=seed).save(folder / f"{arm}.safetensors")
