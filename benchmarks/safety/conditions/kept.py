"""What baselines have learnt, as figures that can be kept with a run, and the conditions that they make.

Learning asks the model hundreds of requests and tries dozens of strengths; a run that is gone on with takes up what was
learnt from the same requests, on the same weights, instead.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from pydantic import Field
from torch import nn

from benchmarks.localisation.peers.conditional import PromptCondition
from benchmarks.localisation.peers.contender import Condition as Where
from benchmarks.localisation.peers.contender import Contender
from benchmarks.localisation.peers.vectors import added
from benchmarks.safety.conditions.condition import Calibrated, Condition
from benchmarks.safety.conditions.output_filter import OutputFilter
from calibration.judging.behaviour import pad_token
from calibration.prompts.material import Encoder
from calibration.prompts.sequences import Example, collate
from calibration.report.display import percent
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit
from guard.spec.measures import Frozen

CONTRAST, DIRECTION, CONDITIONAL, FILTER = (
    "contrast neurons", "refusal direction", "conditional vector", "output filter",
)  # fmt: skip
Values = tuple[float, ...]


class KeptPlace(Frozen):
    """Where a conditional vector acts: the fields of `PromptCondition`, its vector [d_model]."""

    layer: int
    vector: Values
    threshold: float
    side: int


class KeptChange(Frozen):
    """What is put on the model, in words and figures: vectors [d_model] by layer, edits, or nothing; and where."""

    words: str
    added: dict[int, Values] = Field(default_factory=dict)
    edits: tuple[LayerEdit, ...] = ()
    where: KeptPlace | None = None

    @classmethod
    def of(cls, chosen: Contender) -> "KeptChange":
        """Of a contender that adds vectors, sets edits, or does nothing."""
        put, condition = chosen.installed, chosen.condition
        what = put.args[1] if isinstance(put, partial) else {}
        place = None
        if isinstance(condition, PromptCondition):
            vector = tuple(condition.vector.tolist())
            place = KeptPlace(layer=condition.layer, vector=vector, threshold=condition.threshold, side=condition.side)
        if isinstance(what, dict):
            return cls(words=chosen.strength, added={at: tuple(one.tolist()) for at, one in what.items()}, where=place)
        return cls(words=chosen.strength, edits=tuple(what), where=place)

    def condition(self, name: str, encoder: Encoder) -> Condition:
        """The condition by this name."""
        installed: Callable[[], AbstractContextManager[object]] = nullcontext
        if self.added:
            installed = partial(added, encoder.model, {at: torch.tensor(one) for at, one in self.added.items()})
        elif self.edits:
            installed = partial(install_edits, encoder.model, self.edits)
        where = self.where
        if where is None:
            return Condition(name, installed, words=self.words)
        place = PromptCondition(where.layer, torch.tensor(where.vector), where.threshold, where.side)
        return Condition(name, installed, acts=acting(encoder, place), words=self.words)


class KeptFilter(Frozen):
    """The fields of `OutputFilter`, its direction [d_model]."""

    layer: int
    direction: Values
    threshold: float
    rate: float
    refusal: str

    @classmethod
    def of(cls, found: OutputFilter) -> "KeptFilter":
        """Of a filter that was learnt."""
        direction = tuple(found.direction.tolist())
        return cls(
            layer=found.layer,
            direction=direction,
            threshold=found.threshold,
            rate=found.rate,
            refusal=found.refusal,
        )

    def condition(self, encoder: Encoder) -> Condition:
        """The filter as a condition."""
        direction = torch.tensor(self.direction)
        rewrite = OutputFilter(encoder, self.layer, direction, self.threshold, self.rate, self.refusal)
        words = f"reads finished answers, meant to stop {percent(self.rate)} of benign ones at most"
        return Condition(FILTER, nullcontext, rewrite=rewrite, words=words)


class KeptBaselines(Frozen):
    """All that was learnt; without a spec there is no number of neurons for `contrast`."""

    contrast: KeptChange | None
    direction: KeptChange
    conditional: KeptChange
    output_filter: KeptFilter

    def conditions(self, encoder: Encoder) -> tuple[Condition, ...]:
        """The conditions, in the order of their names."""
        changes = ((CONTRAST, self.contrast), (DIRECTION, self.direction), (CONDITIONAL, self.conditional))
        found = [change.condition(name, encoder) for name, change in changes if change is not None]
        return (*found, self.output_filter.condition(encoder))


def digest_of_lesson(calibrated: Calibrated) -> str:
    """Sha256 of the requests that are learnt from, answers and all."""
    digest = hashlib.sha256()
    for kind in (calibrated.harmful, calibrated.benign):
        digest.update(b"".join(request.model_dump_json().encode() + b"\n" for request in kind) + b"\n")
    return digest.hexdigest()


def acting(encoder: Encoder, where: Where) -> Callable[[Sequence[tuple[int, ...]]], list[bool]]:
    """Whether a method acts on each of some encoded prompts, by the model as it is then: without the method."""
    model, pad = encoder.model, pad_token(encoder.tokenizer)

    @torch.inference_mode()
    def acts(prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        examples = [Example(prompt, prompt[-1:], prompt[-1:]) for prompt in prompts]  # a batch has continuations
        batch = collate(examples, pad_id=pad, device=_device(model))
        return [bool(one) for one in where(model, batch)]

    return acts


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
