"""One case of the calibration benchmark, in a process of its own, so that its peak memory is its own.

`python -m benchmarks.scaling.case '{"layers": 4, ...}'` prints seconds by stage and bytes as JSON. Seconds are the
processor's, on one thread: what else the machine does changes them little, and how well more threads scale is torch's.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from calibration.effects.mediation import all_mediators, mediator_effects
from calibration.evidence.effects_evidence import mediation_evidence
from calibration.prompts.sequences import Batch, Example, collate
from calibration.search.bounds import measure, unedited_logits
from calibration.search.gate import SplitBatches, prepare
from calibration.search.selection import Masks, joint_outcomes, linear_effects
from guard.spec.edit import LayerEdit

PROMPT_TOKENS, RESPONSE_TOKENS, TAIL, BATCH = 24, 8, 4, 8


class Case(BaseModel):
    """A random model's shape and the number of prompts; `mediated` layers, the last ones (None: all)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = 16
    layers: int = 6
    d_model: int = 128
    d_ff: int = 512
    vocabulary: int = 2048
    heads: int = 4
    key_value_heads: int = 2
    mediated: int | None = None
    seed: int = 0


class Reading(BaseModel):
    """Processor seconds by stage; bytes: the peak of the process, and what it had before the first; weights counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: dict[str, float]
    peak_bytes: int
    loaded_bytes: int
    parameters: int


def random_model(case: Case) -> nn.Module:
    """A Qwen2 of the case's shape, float32."""
    torch.manual_seed(case.seed)
    make: Any = Qwen2ForCausalLM
    model: nn.Module = make(
        Qwen2Config(
            num_hidden_layers=case.layers,
            hidden_size=case.d_model,
            intermediate_size=case.d_ff,
            num_attention_heads=case.heads,
            num_key_value_heads=case.key_value_heads,
            vocab_size=case.vocabulary,
            tie_word_embeddings=True,
        )
    )
    return model.requires_grad_(False).train(False)


def random_batches(case: Case, seed: int) -> tuple[Batch, ...]:
    """The prompts of one kind in batches, of one length, with a common tail and common continuations."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, case.vocabulary, (count,), generator=generator).tolist())

    tail = tuple(range(1, TAIL + 1))
    answers = [(tuple(range(9, 9 + RESPONSE_TOKENS)), tuple(range(29, 29 + RESPONSE_TOKENS)))] * case.prompts
    examples = [Example(tokens(PROMPT_TOKENS - TAIL) + tail, *answer) for answer in answers]
    return tuple(
        collate(examples[start : start + BATCH], pad_id=0, tail=TAIL) for start in range(0, case.prompts, BATCH)
    )


def read(case: Case) -> Reading:
    """Run the stages of a calibration that grow with prompts and model, once each."""
    torch.set_num_threads(1)
    model = random_model(case)
    split = SplitBatches(*(random_batches(case, seed) for seed in (1, 2, 3)))
    seconds: dict[str, float] = {}
    loaded = peak_bytes()

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        started = time.process_time()
        found = stage()
        seconds[name] = time.process_time() - started
        return found

    def mediated() -> object:
        if case.mediated is None:
            return mediation_evidence(model, split, seed=0)
        layers = range(case.layers - case.mediated, case.layers)
        pairs = list(zip(split.reference, split.harmful, strict=True))
        return mediator_effects(model, pairs, all_mediators(model, layers))

    timed("mediation", mediated)
    late = timed("late layers", lambda: prepare(model, split, split))
    harmful, benign = (late.calibration[kind].where(None) for kind in ("harmful", "benign"))
    empty = Masks(late.activations.benign_mean)
    timed("a round of the gate", lambda: (linear_effects(harmful, empty), joint_outcomes(harmful, empty)))
    edit = LayerEdit(layer=case.layers - 1, neurons=(0, 1), scale=(0.0, 0.0), lower=(0.0, 0.0), upper=(0.0, 0.0))
    timed("a trial of bounds", lambda: measure(harmful, benign, unedited_logits(benign), [edit]))
    parameters = sum(weight.numel() for weight in model.parameters())
    return Reading(seconds=seconds, peak_bytes=peak_bytes(), loaded_bytes=loaded, parameters=parameters)


def peak_bytes() -> int:
    """The most that this process has had in memory so far; of `resource` a process inherits what its parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.stdout.write(read(Case.model_validate(json.loads(sys.argv[1]))).model_dump_json() + "\n")
