"""An organism, or any model folder with prompts of its own: calibrated here, and asked what calibration held out.

The spec is kept beside the figures and taken up again. Held out is what the calibration itself held out: its splits are
made again from the same files by the same seed, so no request that chose the gate or its bounds is asked.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.localisation.run import UnknownOrganismError
from benchmarks.organisms.calibrating import calibration_options, truth_of
from benchmarks.organisms.catalogue import WEIGHTS
from benchmarks.organisms.language import REFUSALS
from benchmarks.safety.conditions.catalogue import Calibrated
from benchmarks.safety.options import Options
from benchmarks.safety.prompt_sets import (
    PUBLISHED_ATTACKS,
    Kind,
    Prompts,
    available,
    choose,
    digest_of_all,
    drawn,
    own,
)
from benchmarks.safety.subject import Subject, SubjectError, asked, kind_of_file
from calibration.options import CalibrationOptions
from calibration.pipeline import calibrate, read_sources
from calibration.prompts.material import DEFAULT_REFUSAL, Sources
from calibration.prompts.request_sets import Request
from guard.spec.edit_spec import EditSpec
from guard.spec.permission import is_servable

BUILT = Path(__file__).parents[2] / "build" / "organisms"
SPEC, EVIDENCE = "guard.safetensors", "calibration.html"
REFUTED = "Guard: the verdict on its spec is refuted, so nothing serves it; --allow-refuted measures it all the same."
OWN_SETS = (
    "The field's own files of prompts, but for JailbreakBench's attacks on goals that the model's folder holds out: "
    "what it holds out is asked in their stead."
)
NOTHING_PLANTED = "True gate: nothing is planted in this organism, so there is no true gate to compare with."


def calibrated_organism(options: Options) -> Subject:
    """The organism that `options` name, calibrated into their output folder unless its spec lies there already."""
    if options.model is not None or options.spec is not None or options.endpoint is not None:
        raise SubjectError("an organism brings its own model and spec: leave MODEL, --spec and --endpoint out.")
    folder = folder_of(options.organism or "")
    settings = calibration_of(folder, options)
    sources, digests = read_sources(settings)
    spec = EditSpec.load(settings.output) if settings.output.exists() else calibrate(settings)
    if spec.provenance.data != digests or spec.provenance.seed != options.seed:
        raise SubjectError(f"{settings.output} was calibrated on other prompts or by another seed: move it away.")
    calibrated, truth = seen_by(sources), truth_of(folder)
    prompts, left_out = further(folder, options, calibrated) if truth is None else ((), ())
    refuted = not is_servable(spec, allow_refuted=options.allow_refuted)
    return Subject(
        model=str(folder),
        spec=None if refuted else spec,
        prompts=(*held_out(sources, options), *prompts),
        calibrated=calibrated,
        planted=(truth.gate or None) if truth else None,
        refusals=(*REFUSALS, DEFAULT_REFUSAL) if truth else (),  # the last is an output filter's
        english=truth is None,
        left_out=(*([REFUTED] if refuted else []), *([NOTHING_PLANTED] if truth and not truth.gate else []), *left_out),
    )


def folder_of(name: str) -> Path:
    """The folder of an organism: embedded, built here, or at a path. Raises UnknownOrganismError."""
    for folder in (WEIGHTS / name, BUILT / name, Path(name)):
        if name and (folder / "config.json").exists():
            return folder
    raise UnknownOrganismError(f"there is no organism {name!r}: name one of {WEIGHTS}, or the folder of a built one.")


def calibration_of(folder: Path, options: Options) -> CalibrationOptions:
    """How the organism is calibrated, beside the figures."""
    return calibration_options(
        folder,
        options.output / SPEC,
        seed=options.seed,
        report=options.output / EVIDENCE,
        template=options.template,
        device=options.device,
        dtype=options.dtype,
    )


def seen_by(sources: Sources) -> Calibrated:
    """What found and chose the gate: the calibration and the validation split, plain and wrapped."""
    pairs = (*sources.pairs.calibration, *sources.pairs.validation)
    plain = [pair.reference for pair in pairs] if sources.contrast == "jailbreak" else []
    return Calibrated(
        harmful=_each_once([*plain, *(pair.harmful for pair in pairs)]),
        benign=_each_once([*sources.benign.calibration, *sources.benign.validation]),
    )


def held_out(sources: Sources, options: Options) -> tuple[Prompts, ...]:
    """What the calibration held out: harmful requests, plain and wrapped where there are jailbreaks, benign ones."""
    pairs = sources.pairs.held_out
    harmful = [pair.harmful for pair in pairs]
    plain = [pair.reference for pair in pairs] if sources.contrast == "jailbreak" else []
    named: list[tuple[str, Kind, Sequence[Request]]] = [
        ("held-out harmful", "harmful", plain or harmful),
        ("held-out jailbreaks", "harmful", harmful if plain else []),
        ("held-out benign", "harmless", sources.benign.held_out),
    ]
    return tuple(
        Prompts(name, kind, digest_of_all(whole), drawn(whole, suite=options.suite, seed=options.seed))
        for name, kind, requests in named
        if (whole := _each_once(requests))
    )


def further(folder: Path, options: Options, calibrated: Calibrated) -> tuple[tuple[Prompts, ...], tuple[str, ...]]:
    """The files of the folder's held_out, named by kind, else the field's sets in a data folder; what is left out."""
    files = [own(str(file), kind_of_file(file.name)) for file in sorted((folder / "held_out").glob("*.jsonl"))]
    if not files:
        return asked((), options, calibrated) if options.data else ((), ())
    prompts, left_out = asked(files, options, calibrated)
    attacks = published_attacks(options, prompts, calibrated)
    return (*prompts, *attacks), (*left_out, *([OWN_SETS] if options.data else []))


def published_attacks(options: Options, held: Sequence[Prompts], calibrated: Calibrated) -> tuple[Prompts, ...]:
    """JailbreakBench's attacks that lie in a data folder, on goals of `held` alone: others may have been trained on."""
    if options.data is None:
        return ()
    seen = (*calibrated.harmful, *calibrated.benign)
    goals = {request.group for prompts in held for request in prompts.requests}
    sets = [one for one in available(options.data) if one.family == PUBLISHED_ATTACKS]
    chosen = [choose(one, options.data, suite=options.suite, seed=options.seed, seen=seen, among=goals) for one in sets]
    return tuple(one for one in chosen if one.requests)


def _each_once(requests: Sequence[Request]) -> tuple[Request, ...]:
    return tuple({request.prompt: request for request in requests}.values())
