"""The model run plain, with the guard on, and with neurons set by hand: what each changes, and what may be told of it.

A debugger that generates from any edit would be a way to jailbreak a model by hand. So an edit that makes the model
lean more to compliance is answered in numbers alone: Y and its halves, no first token, no answer. The lean is judged
twice, on the replies that Y compares and on those that no flag can choose, and nothing is said where either rises; and
an answer that no longer refuses what the plain model refuses is never shown. Measured by hooks, generated with the
guard as it is served; in both a neuron is set first, so that the guard has the last word.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.effects.outcome import continuation_log_probability, outcome, readout_logits
from calibration.judging.behaviour import Behaviour
from calibration.prompts.sequences import Batch
from calibration.report.redaction import redacted
from calibration.runs.interventions import editing
from calibration.runs.resume import record
from calibration.runs.trial import edit_transforms, transformed
from calibration.trace.document import Answer, Case, FirstToken
from calibration.trace.readings import entering, readings
from calibration.trace.replies import Said, Speaker, as_answer
from calibration.trace.subject import Subject, visible_tokens
from guard.hf import install_edits
from guard.runtime.trigger import TriggerReadout
from guard.spec.edit_spec import EditSpec, LayerEdit

FIRST_TOKENS = 5
ROUNDING = 1e-5  # nats by which Y may differ between two ways of computing the same

RISES = (
    "No answer and no first tokens are given: this edit makes the model lean more to compliance, and such an edit is "
    "told in nats alone."
)
TURNS = "Its text and first tokens are left out: the plain model refuses, and this answer does not."


@dataclass(frozen=True)
class Intervention:
    """What is done to the model: neurons set by hand, then the guard of `spec`; nothing where both are missing."""

    sets: tuple[LayerEdit, ...] = ()
    spec: EditSpec | None = None

    @property
    def name(self) -> str:
        """What the case is called."""
        parts = (["set"] if self.sets else []) + (["guard on"] if self.spec else [])
        return ", ".join(parts) or "plain"

    @contextmanager
    def measured(self, subject: Subject, batch: Batch) -> Iterator[Tensor | None]:
        """Within the block runs of `batch` are changed; gives where the guard's edit is active, bool [2B, P + C]."""
        with editing(subject.model, batch, self.sets):
            if self.spec is None:
                yield None
                return
            active = active_tokens(subject, batch, self.spec)
            with editing(subject.model, batch, self.spec.layers, active):
                yield active

    @contextmanager
    def generating(self, subject: Subject) -> Iterator[None]:
        """Within the block the model generates as changed: the guard is installed as it is where it serves."""
        with ExitStack() as stack:
            if self.spec is not None and self.spec.layers:
                stack.enter_context(install_edits(subject.model, self.spec.layers, self.spec.trigger))
            device = subject.batch.input_ids.device
            stack.enter_context(transformed(subject.model, edit_transforms(self.sets, device)))
            yield


@torch.inference_mode()
def active_tokens(subject: Subject, batch: Batch, spec: EditSpec) -> Tensor | None:
    """Where the trigger of `spec` is active in a run of `batch` as the model is now, bool [2B, P + C]; None: always.

    Padding is never active.
    """
    scores = trigger_scores(subject, batch, spec)
    if scores is None or spec.trigger is None:
        return None
    return (scores > spec.trigger.threshold) & batch.attention_mask.bool()


@torch.inference_mode()
def trigger_scores(subject: Subject, batch: Batch, spec: EditSpec) -> Tensor | None:
    """What the trigger of `spec` reads at each token, [2B, P + C]; None where it has none."""
    if spec.trigger is None:
        return None
    residual = record(subject.model, batch, spec.trigger.layer).residual
    return TriggerReadout(spec.trigger, residual.device).score(residual)


class Cases:
    """The cases of one prompt. `standard` is the batch whose replies no flag has chosen; `own` the plain answer."""

    def __init__(
        self, subject: Subject, standard: Batch, speaker: Speaker, own: Said, text: str, *, show_text: bool
    ) -> None:
        self.subject, self.standard, self.speaker = subject, standard, speaker
        self.own, self.text, self.show_text = own, text, show_text

    def run(self, interventions: Sequence[Intervention]) -> tuple[Case, ...]:
        """The plain model, and each intervention against it."""
        plain = Intervention()
        leans = self._leans(plain)
        return tuple(self._case(each, leans) for each in (plain, *interventions))

    @torch.inference_mode()
    def _leans(self, intervention: Intervention) -> tuple[float, ...]:
        """Y on the replies compared, and on the standard ones."""
        found = []
        for batch in (self.subject.batch, self.standard):
            with intervention.measured(self.subject, batch):
                found.append(float(outcome(readout_logits(self.subject.model, batch), batch)))
        return tuple(found)

    @torch.inference_mode()
    def _case(self, intervention: Intervention, plain: tuple[float, ...]) -> Case:
        subject, batch = self.subject, self.subject.batch
        rises = any(here > there + ROUNDING for here, there in zip(self._leans(intervention), plain, strict=True))
        with intervention.measured(subject, batch):
            logits = readout_logits(subject.model, batch)
            by_depth = readings(subject, entering(subject))
        compliance, refusal = continuation_log_probability(logits, batch).tolist()
        answer, withheld = (None, RISES) if rises else self._answer(intervention)
        first = () if withheld else self._first_tokens(logits[0, 0])
        return Case.model_validate(
            {
                "name": intervention.name,
                "outcome": compliance - refusal,
                "compliance": compliance,
                "refusal": refusal,
                "readings": tuple(by_depth),
                "first_tokens": first,
                "answer": answer,
                "withheld": withheld,
            }
        )

    def _answer(self, intervention: Intervention) -> tuple[Answer, str | None]:
        if intervention == Intervention():
            return as_answer(self.own, self.text, show_text=self.show_text), None
        said = self.speaker.answer(
            self.subject.prompt, lambda: intervention.generating(self.subject), self.own.surprise
        )
        if self.own.behaviour is Behaviour.REFUSED and said.behaviour is not Behaviour.REFUSED:
            hidden = redacted(said.text, hide=True)
            answer = Answer(behaviour=said.behaviour, text=None, digest=hidden.digest, words=hidden.words)
            return answer, TURNS
        return as_answer(said, self.text, show_text=self.show_text), None

    def _first_tokens(self, logits: Tensor) -> tuple[FirstToken, ...]:
        """The likeliest first tokens of the reply, from the logits [V] of the last prompt token."""
        shares = logits.float().softmax(-1)
        top = shares.topk(min(FIRST_TOKENS, len(shares)))
        texts = visible_tokens(self.subject.tokenizer, top.indices.tolist())
        return tuple(
            FirstToken(text=text, probability=min(1.0, share))
            for text, share in zip(texts, top.values.tolist(), strict=True)
        )
