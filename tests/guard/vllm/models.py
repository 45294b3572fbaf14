"""Tiny models on disk as vLLM loads them, the specs that belong to them, and what transformers says that they do."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from guard.hf import install_edits
from guard.runtime.counts import Tally
from guard.spec.edit_spec import EditSpec, LayerEdit, Trigger
from guard.spec.fingerprint import fingerprint
from tests.conftest import make_tiny_model
from tests.guard.by_hand import make_trigger
from tests.guard.specs import evidence_with, small_spec
from tests.tiny_families import tiny_family

PROMPTS = [[5, 17, 23, 4, 40], [9, 9, 31, 60, 2, 77, 101, 4, 8]]
NEW_TOKENS = 8
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
D_MODEL, D_FF, VOCABULARY = 64, 96, 264
# Both halves of the neurons in layer 2, so that two ranks own some; one in layer 3, so that one rank owns none.
EDITS = (
    LayerEdit(layer=2, neurons=(3, 7, 60), scale=(1.0, -2.0, 1.0), lower=(4.0, -0.5, -3.0), upper=(4.0, 0.5, -3.0)),
    LayerEdit(layer=3, neurons=(0, 11), scale=(0.0, 5.0), lower=(-math.inf, -1.0), upper=(math.inf, math.inf)),
)
# As many neurons in the same layers and on the same rank of two, but other ones, held otherwise.
OTHERS = tuple(
    edit.model_copy(update={"neurons": tuple(neuron + 5 for neuron in edit.neurons), "scale": edit.scale[::-1]})
    for edit in EDITS
)


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer, which every model type's own class reads as it is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL.values(), *alphabet]
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)


def save_model(folder: Path, model_type: str = "llama", **settings: Any) -> Path:
    """A tiny model in `folder`, with sizes that vLLM's attention on a CPU takes; the folder."""
    settings = {**tiny_family(model_type).for_vllm, **settings}
    sizes = {"layers": 4, "d_model": D_MODEL, "d_ff": D_FF, "vocabulary": VOCABULARY, "heads": 2}
    make_tiny_model(model_type, **(sizes | settings)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@torch.no_grad()
def trigger_of(folder: Path, layer: int = 1) -> Trigger:
    """A trigger that is active on about half of the tokens of PROMPTS, far from any token's score."""
    direction = torch.tensor(make_trigger(D_MODEL).direction)
    model = load(folder)
    streams = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0] for ids in PROMPTS]
    scores = torch.cat([stream @ direction for stream in streams]).sort().values
    quarter = len(scores) // 4
    middle = scores[quarter:-quarter]
    widest = int(middle.diff().argmax())
    return make_trigger(D_MODEL, layer=layer, threshold=float(middle[widest : widest + 2].mean()))


def make_spec(
    folder: Path,
    edits: Sequence[LayerEdit] = EDITS,
    trigger: Trigger | None = None,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> EditSpec:
    """A spec made on the model in `folder`, loaded as `dtype`."""
    identity = fingerprint(load(folder, dtype), [edit.layer for edit in edits], AutoTokenizer.from_pretrained(folder))
    return small_spec(
        **(
            {
                "model": identity,
                "layers": tuple(edits),
                "trigger": trigger,
                "evidence": evidence_with(mediators=(), neurons=()),
            }
            | changes
        )
    )


def expected(
    folder: Path,
    edits: Sequence[LayerEdit] = EDITS,
    trigger: Trigger | None = None,
    *,
    prompts: Sequence[list[int]] = PROMPTS,
    model: Any = None,
) -> list[dict[str, Any]]:
    """What transformers generates greedily for PROMPTS with the edit installed, in the form of `actions.generate`.

    Instead of the model in `folder`, a `model` can be given.
    """
    whole = load(folder) if model is None else model
    return [_generate(whole, prompt, edits, trigger) for prompt in prompts]


@torch.no_grad()
def counted(
    folder: Path,
    answers: Sequence[dict[str, Any]],
    edits: Sequence[LayerEdit] = EDITS,
    trigger: Trigger | None = None,
) -> Tally:
    """What transformers counts on PROMPTS and `answers` to them, without the last token, which no pass sees."""
    model = load(folder)
    with install_edits(model, edits, trigger) as installation:
        counts = installation.count()
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            ids = torch.tensor([prompt + answer["tokens"][:-1]])
            with counts.counting(torch.ones_like(ids, dtype=torch.bool)):
                model(ids)
        return counts.totals()


@torch.no_grad()
def _generate(model: Any, prompt: list[int], edits: Sequence[LayerEdit], trigger: Trigger | None) -> dict[str, Any]:
    installation = install_edits(model, edits, trigger) if edits else None
    tokens, logprobs = list(prompt), []
    for _ in range(NEW_TOKENS):
        scores = model(torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    if installation is not None:
        installation.remove()
    return {"tokens": tokens[len(prompt) :], "logprobs": logprobs}
