"""One trace: a model and a prompt in, the document of what was measured out.

About six passes of the model and one backward pass, and as many runs of late layers as the limits of `cells.py` and
`neurons.py` allow: seconds on an organism, and work linear in layers x tokens on a large model, whose memory holds what
`gradients.py` keeps. All of it is of the plain model; the guard and the neurons set by hand are held against it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from calibration.effects.outcome import outcome, readout_logits
from calibration.prompts.material import CONTINUATION_TOKENS
from calibration.prompts.sequences import Batch
from calibration.search.findings import StageBars, silent
from calibration.trace.breaks import break_edits
from calibration.trace.cases import Cases, Intervention
from calibration.trace.cells import Copies
from calibration.trace.document import Column, Trace
from calibration.trace.gradients import measure_gradients, values_in
from calibration.trace.guard_at_work import guard_at_work
from calibration.trace.mediators import Mediators
from calibration.trace.neurons import Neurons
from calibration.trace.readings import as_steps, entering, lens, readings, turn
from calibration.trace.replies import Speaker, as_reply, choose, openings_of
from calibration.trace.subject import Subject, encode_prompt, lay_out, visible_tokens
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import EditSpec
from guard.spec.fingerprint import verify
from guard.spec.permission import require_servable


@dataclass(frozen=True)
class Question:
    """What is asked of a model: a prompt, perhaps another one, the replies that Y compares, and neurons to set.

    Texts of replies that are None are chosen (`replies.choose`). `name` is what the model is called.
    """

    name: str
    prompt: str
    against: str | None = None
    compliance: str | None = None
    refusal: str | None = None
    sets: tuple[str, ...] = ()
    template: bool = True
    max_new_tokens: int = 32
    show_text: bool = False


def trace(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    *,
    spec: EditSpec | None = None,
    spec_path: Path | None = None,
    allow_refuted: bool = False,
    progress: StageBars = silent,
) -> Trace:
    """Measure where Y turns on the question's prompt. Raises NeuronGuardError where it cannot be asked."""
    architecture = architecture_of(model)
    widths = [architecture.neurons_of(layer) for layer in architecture.decoder_layers(model)]
    sets = break_edits(question.sets, widths)
    if spec is not None:
        _check(spec, model, tokenizer, allow_refuted=allow_refuted)
    speaker = Speaker(model, tokenizer, question.max_new_tokens, openings_of(question.refusal))
    with progress("the model's own answers", None):
        subject, cases = _prepared(model, tokenizer, question, speaker)
    with progress("values and gradients", None):
        gradients = measure_gradients(model, subject.batch)
        other = None if subject.reference is None else values_in(model, subject.reference)
        runs = entering(subject)
        steps = as_steps(readings(subject, runs))
    copies = Copies(runs)
    mediators = Mediators(subject, gradients, other, copies)
    with progress("layers and modules", None):
        modules, maps = mediators.modules(), mediators.maps()
    with progress("neurons", None):
        gate = {edit.layer: edit.neurons for edit in spec.layers} if spec else {}
        neurons = Neurons(subject, gradients, other, copies).found(gate, {edit.layer: edit.neurons for edit in sets})
    with progress("what changes", None):
        interventions = [Intervention((), spec)] * bool(spec) + [Intervention(sets)] * bool(sets)
        interventions += [Intervention(sets, spec)] * bool(spec and sets)
        tried = cases.run(interventions)
        at_work = None if spec is None else guard_at_work(subject, spec, gradients, copies)
    replies = subject.continuations
    return Trace(
        model=question.name,
        model_type=architecture.model_type,
        layers=len(widths),
        d_ff=max(widths),
        spec=None if spec_path is None else str(spec_path),
        columns=_columns(subject, show_text=question.show_text),
        other_tokens=None if subject.other is None else visible_tokens(tokenizer, subject.other),
        compliance=as_reply(replies.compliance, tokenizer, show_text=question.show_text),
        refusal=as_reply(replies.refusal, tokenizer, show_text=question.show_text),
        replacement="mean of the prompt's tokens" if other is None else "the other prompt's run",
        outcome=copies.outcome,
        reference=_outcome(model, subject.reference),
        turn=turn(steps),
        steps=steps,
        modules=modules,
        maps=maps,
        lens=tuple(tuple(row) for row in lens(subject, runs)),
        neurons=neurons,
        sets=question.sets,
        cases=tried,
        guard=at_work,
        shows_text=question.show_text,
    )


def _check(spec: EditSpec, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, allow_refuted: bool) -> None:
    """Raise where `spec` does not belong to the model, or has been refuted and is not asked for by name."""
    verify(spec, model, tokenizer)
    require_servable(spec, allow_refuted=allow_refuted, remedy="pass --allow-refuted to trace it")


def _prepared(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, question: Question, speaker: Speaker
) -> tuple[Subject, Cases]:
    """The subject with the replies asked for, and its cases, which are also judged on replies that nobody chose."""
    room = max(question.max_new_tokens, CONTINUATION_TOKENS)

    def encoded(text: str) -> tuple[int, ...]:
        return encode_prompt(model, tokenizer, text, room, template=question.template)

    prompt = encoded(question.prompt)
    other = None if question.against is None else encoded(question.against)
    own = speaker.answer(prompt)
    answer_to_other = None if other is None else speaker.answer(other)
    replies = choose(tokenizer, own, answer_to_other, compliance=question.compliance, refusal=question.refusal)
    plain_speaker = replace(speaker, openings=openings_of(None))
    unprompted = plain_speaker.answer(prompt) if question.refusal is not None else own
    standard = lay_out(model, tokenizer, prompt, None, choose(tokenizer, unprompted, None)).batch
    subject = lay_out(model, tokenizer, prompt, other, replies)
    return subject, Cases(subject, standard, speaker, own, question.prompt, show_text=question.show_text)


@torch.inference_mode()
def _outcome(model: nn.Module, batch: Batch | None) -> float | None:
    """Y of one request, nats."""
    return None if batch is None else float(outcome(readout_logits(model, batch), batch))


def _columns(subject: Subject, *, show_text: bool) -> tuple[Column, ...]:
    """The columns with their tokens; those of a reply that is left out have none."""
    prompt = [Column(part="prompt", text=text) for text in visible_tokens(subject.tokenizer, subject.prompt)]
    compliance, refusal = subject.continuations.compliance, subject.continuations.refusal
    complying, refusing = (visible_tokens(subject.tokenizer, each.tokens) for each in (compliance, refusal))
    steps = len(subject.columns) - len(prompt)

    def at(texts: tuple[str, ...], step: int, shown: bool) -> str | None:
        return texts[step] if shown and step < len(texts) else None

    return tuple(prompt) + tuple(
        Column(
            part="reply",
            text=at(complying, step, compliance.shown or show_text),
            refusal=at(refusing, step, refusal.shown or show_text),
        )
        for step in range(steps)
    )
