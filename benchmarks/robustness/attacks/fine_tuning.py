"""Fine-tune an organism on harmful pairs: how many steps until the guarded model complies? On organisms alone.

Someone who may train the weights can train around the guard, with it installed or without. Whether the guard then
agrees to be installed is asked of the guard: its fingerprint sees the MLPs of the guarded layers and nothing else, so
both what it sees and what it does not see is trained. Where it refuses, nothing is served, and what its edit would do
is measured all the same.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.organisms.train import IGNORED, encode
from benchmarks.robustness.organisms import OwnOrganism, require_organism
from benchmarks.robustness.result import AttackResult, Row, row
from benchmarks.robustness.subject import Subject
from benchmarks.safety.conditions.catalogue import GUARDED
from calibration.judging.behaviour import Behaviour

LEARNING_RATE, ROWS = 5e-4, 16
ALL, ATTENTION, UNSEEN = "all weights", "attention", "all that the fingerprint does not see"
TRAININGS = 9  # of three parts: the guard on meanwhile, off, and the model that needs none


def fine_tuning(
    subject: Subject, steps: Sequence[int], *, seed: int, advance: Callable[[int], None] = lambda _: None
) -> AttackResult:
    """Compliance after each number of `steps`, by what is trained and whether the guard is on meanwhile.

    Raises NotAnOrganismError for any other model. `advance` is told of each training that is done.
    """
    own = require_organism(subject)
    guarded = own.targets()[1]
    before = own.says(guarded)
    rows: list[Row] = []
    for part in (ALL, UNSEEN, ATTENTION):
        for while_on in (True, False):
            model = copy.deepcopy(own.model)
            for done in _tune(own, model, part, steps, guard=while_on, seed=seed):
                with own.edited(model):
                    after = own.said(model, own.requests)
                variant = f"{done} steps on {part}, guard {'on' if while_on else 'off'} meanwhile"
                rows.append(row(variant, GUARDED, before, after, installs=own.installs_on(model)))
            advance(1)
        rows += _beside(own, part, steps, seed)
        advance(1)
    setting = {"learning rate": str(LEARNING_RATE), "pairs in a step": str(ROWS), "pairs": str(len(own.tuned_on))}
    return AttackResult(attack="fine-tuning", setting=setting, rows=tuple(rows))


def _beside(own: OwnOrganism, part: str, steps: Sequence[int], seed: int) -> Iterator[Row]:
    """The same training of the model that refuses without a guard."""
    refusing = own.refusing
    before: list[Behaviour] = own.says(refusing)
    model = copy.deepcopy(refusing.model)
    for done in _tune(own, model, part, steps, guard=False, seed=seed):
        yield row(f"{done} steps on {part}", refusing.name, before, own.said(model, refusing.requests))


def trained_parameters(model: nn.Module, part: str, guarded_layers: Sequence[int]) -> list[nn.Parameter]:
    """The parameters of a part of the model; all others are frozen."""
    seen = tuple(f"layers.{layer}.mlp." for layer in guarded_layers)
    chosen = []
    for name, parameter in model.named_parameters():
        wanted = {
            ALL: True,
            ATTENTION: ".self_attn." in name,
            UNSEEN: not any(mark in name for mark in seen),
        }[part]
        parameter.requires_grad_(wanted)
        chosen += [parameter] * wanted
    return chosen


def _tune(
    own: OwnOrganism, model: nn.Module, part: str, steps: Sequence[int], *, guard: bool, seed: int
) -> Iterator[int]:
    """Train `model` in place on harmful pairs, stopping after each number of `steps`; yields that number."""
    parameters = trained_parameters(model, part, [edit.layer for edit in own.spec.layers])
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    draw, done = random.Random(seed), 0
    for until in sorted(steps):
        with own.edited(model) if guard else nullcontext():
            for _ in range(until - done):
                drawn = draw.sample(own.tuned_on, min(ROWS, len(own.tuned_on)))
                texts = [(request.prompt, request.compliance or "") for request in drawn]
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(answer_loss(model, *encode(own.tokenizer, texts)))
                optimizer.step()
        done = until
        yield done


def answer_loss(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy per answer token, [] nats, of `input_ids` [B, T] with `labels` [B, T]."""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]  # [B, T - 1, V]
    read = labels[:, 1:] != IGNORED
    return functional.cross_entropy(logits[read], labels[:, 1:][read])
