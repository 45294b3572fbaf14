"""What is measured: a model, its guard, the requests that it is asked, and those that its calibration has seen.

Read whole before a model is loaded, so that what is wrong with a file is said at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.organisms.catalogue import Neurons
from benchmarks.safety.conditions.catalogue import Calibrated
from benchmarks.safety.options import Options
from benchmarks.safety.prompt_sets import PROMPT_SETS, Kind, Prompts, PromptSet, available, choose, own
from calibration.prompts.request_sets import load_requests
from guard.errors import NeuronGuardError
from guard.spec.edit_spec import EditSpec

UNKNOWN_CALIBRATION = (
    "Requests that the calibration has seen may be among those asked: name its files with --calibrated-harmful and "
    "--calibrated-benign to leave them out."
)


class NothingToAskError(NeuronGuardError):
    """No prompt set can be had."""


class SubjectError(NeuronGuardError):
    """Options that do not say what is measured, or say it twice."""


@dataclass(frozen=True)
class Subject:
    """A model by path or hub name, its spec (None: no guard), what it is asked, what its calibration has seen.

    `calibrated` is None where that is not known. `planted` are the neurons of the true gate by layer, where there is
    one; `refusals` all that it says in refusing, where that is known to the letter; `left_out` says in sentences what
    is not measured, and why.
    """

    model: str
    spec: EditSpec | None
    prompts: tuple[Prompts, ...]
    calibrated: Calibrated | None
    planted: Neurons | None = None
    refusals: tuple[str, ...] = ()
    english: bool = True
    left_out: tuple[str, ...] = ()


def read_subject(options: Options) -> Subject:
    """What `options` name by files. Raises NothingToAskError where no set of theirs can be had."""
    if options.model is None:
        raise SubjectError("there is no model to measure: name one, or an organism with --organism.")
    calibrated = _calibrated(options)
    chosen: list[PromptSet] = [own(source, "harmful") for source in options.harmful]
    chosen += [own(source, "harmless") for source in options.harmless]
    prompts, left_out = asked(chosen, options, calibrated)
    unknown = options.spec is not None and calibrated is None
    return Subject(
        model=options.model,
        spec=EditSpec.load(options.spec) if options.spec else None,
        prompts=prompts,
        calibrated=calibrated,
        left_out=(*left_out, *([UNKNOWN_CALIBRATION] if unknown else [])),
    )


def asked(
    chosen: Sequence[PromptSet], options: Options, calibrated: Calibrated | None
) -> tuple[tuple[Prompts, ...], tuple[str, ...]]:
    """The requests of `chosen`, else of the field's sets, without what was calibrated on; and what is left out."""
    sets = tuple(chosen) or available(options.data)
    if not sets:
        raise NothingToAskError(f"{options.data} holds none of the prompt sets: name their folder with --data.")
    seen = () if calibrated is None else (*calibrated.harmful, *calibrated.benign)
    prompts = [choose(one, options.data, suite=options.suite, seed=options.seed, seen=seen) for one in sets]
    missing = [] if chosen else [one.name for one in PROMPT_SETS if one not in sets]
    place = "at the hub" if options.data is None else f"in {options.data}"
    left_out = [f"{name} was not asked: it is not {place}." for name in missing]
    left_out += [f"{one.name} was not asked: calibration has seen all of it." for one in prompts if not one.requests]
    if not any(one.requests for one in prompts):
        raise NothingToAskError("calibration has seen every request that could be asked: name other prompt files.")
    return tuple(one for one in prompts if one.requests), tuple(left_out)


def kind_of_file(name: str) -> Kind:
    """The kind of requests in a file of an organism's: all but the benign ones are harmful."""
    return "harmless" if name.startswith(("benign", "harmless")) else "harmful"


def _calibrated(options: Options) -> Calibrated | None:
    if not options.calibrated_harmful and not options.calibrated_benign:
        return None
    harmful, benign = (
        tuple(request for source in sources for request in load_requests(source).requests)
        for sources in (options.calibrated_harmful, options.calibrated_benign)
    )
    return Calibrated(harmful, benign)
