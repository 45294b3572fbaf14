"""What `neuron-guard bench robustness` attacks: an organism behind its guard, or a user's model behind its own."""

from dataclasses import replace
from pathlib import Path

from benchmarks.organisms.language import WRAPPERS
from benchmarks.robustness.attacks.replay import StaticAttack, published, wrappers
from benchmarks.robustness.options import Options
from benchmarks.robustness.organisms import OwnOrganism, calibration_of, own_organism
from benchmarks.robustness.subject import Subject, by_wording
from benchmarks.safety.prompt_sets import available, choose, own
from calibration.judging.behaviour import Behaviour, generate
from calibration.pipeline import calibrate
from calibration.prompts.request_sets import Request, load_requests
from calibration.prompts.splits import sample
from guard.loading import load_model
from guard.spec.edit_spec import EditSpec

SPEC = "guard.safetensors"
KNOWN, UNKNOWN = "wrappers that it was trained with", "wrappers that it has never seen"


def organism_of(options: Options) -> tuple[OwnOrganism, list[StaticAttack]]:
    """An organism, calibrated into the output folder unless a spec is named or lies there, and its wrappers."""
    name, path = options.organism or "", options.spec or options.output / SPEC
    settings = calibration_of(name, path, seed=options.seed)
    spec = EditSpec.load(path) if options.spec or path.exists() else calibrate(settings)
    count = options.size.requests
    subject = own_organism(name, spec, seed=options.seed, count=count, allow_refuted=options.allow_refuted)
    known = subject.organism.lexicon.wrappers
    unknown = [one for one in WRAPPERS if one not in known]
    return subject, [wrappers(KNOWN, known, subject.plain), wrappers(UNKNOWN, unknown, subject.plain)]


def model_of(options: Options) -> tuple[Subject, list[StaticAttack]]:
    """A user's model behind its guard, asked what its calibration has not seen, and JailbreakBench's attacks."""
    seen = [one for source in options.calibrated_harmful for one in load_requests(source).requests]
    mine = [own(source, "harmful") for source in options.harmful]
    sets = mine or [one for one in available(options.data) if one.kind == "harmful" and one.family is None]
    asked = [
        request
        for one in sets
        for request in choose(one, options.data, suite="quick", seed=options.seed, seen=seen).requests
    ]
    count, source = options.size.requests, options.model or ""
    model, tokenizer = load_model(source, device=options.device, dtype=options.dtype)
    subject = Subject(
        name=Path(source).name,
        source=source,
        model=model,
        tokenizer=tokenizer,
        spec=EditSpec.load(options.spec or Path()),
        requests=sample(asked, count, options.seed),
        classify=by_wording,
        template=options.template,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        allow_refuted=options.allow_refuted,
    )
    return with_own_answers(subject), published(options.data, count=count, seed=options.seed, seen=seen)


def with_own_answers(subject: Subject) -> Subject:
    """The same, each request whose compliance is not given taking the model's own answer, where that complies."""
    open_ones = [one for one in subject.requests if one.compliance is None]
    if not open_ones:
        return subject
    said = generate(
        subject.model,
        subject.tokenizer,
        [subject.prompt(request) for request in open_ones],
        max_new_tokens=subject.max_new_tokens,
        batch_size=subject.batch_size,
    ).texts
    classes = subject.classify(open_ones, said, said)
    answers = {
        request.prompt: text
        for request, text, one in zip(open_ones, said, classes, strict=True)
        if one is Behaviour.COMPLIED
    }

    def known(request: Request) -> Request:
        own_answer = answers.get(request.prompt)
        return request if own_answer is None else request.model_copy(update={"compliance": own_answer})

    return replace(subject, requests=tuple(known(request) for request in subject.requests))
