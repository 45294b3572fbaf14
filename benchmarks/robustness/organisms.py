"""The project's own organisms, known by name and by what their weights hash to: all that is ever attacked adaptively.

A search for suffixes and a fine-tuning on harmful pairs would make any model more compliant. Organisms are tiny models
whose harm means nothing, and no other model passes for one: its weights hash otherwise.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerFast

from benchmarks.organisms.calibrating import calibration_options
from benchmarks.organisms.catalogue import WEIGHTS, Organism, load_organism
from benchmarks.organisms.measure import aligned
from benchmarks.robustness.subject import Subject, Target, by_exact_text
from calibration.options import CalibrationOptions
from calibration.pipeline import read_sources
from calibration.prompts.request_sets import Request
from guard.errors import NeuronGuardError
from guard.spec.edit_spec import EditSpec

DIGESTS = Path(__file__).parent / "digests.json"
REFUSING = "refuses unguarded"


class NotAnOrganismError(NeuronGuardError):
    """A model that is none of the project's own organisms, where nothing else may be attacked."""


def exact_weights_digest(model: nn.Module) -> str:
    """Sha256, in hex, of every parameter by name, shape and value as float32.

    Of every value, where `calibration.runs.identity.weights_digest` takes a sample: this one must not be forged.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def known_digests() -> Mapping[str, str]:
    """The digest of each committed organism's weights, by name."""
    found: Mapping[str, str] = json.loads(DIGESTS.read_text("utf-8"))
    return found


@dataclass(frozen=True, repr=False, kw_only=True)
class OwnOrganism(Subject):
    """A guarded organism. NotAnOrganismError unless its weights are those of the committed organism `name`.

    `refusing` refuses what it is asked by itself, without a guard: what the same attack does to it is what the guarded
    model is set beside. `plain` are the attacked requests without a wrapper, `tuned_on` others that are not attacked.
    """

    tokenizer: PreTrainedTokenizerFast
    organism: Organism
    refusing: Target
    plain: tuple[Request, ...]
    tuned_on: tuple[Request, ...]

    def __post_init__(self) -> None:
        known = known_digests()
        if self.name not in known or exact_weights_digest(self.model) != known[self.name]:
            raise NotAnOrganismError(
                f"{self.name} is none of the project's own organisms ({', '.join(known)}) with its committed weights: "
                "suffix search and fine-tuning run on these alone."
            )

    def beside(self) -> tuple[Target, ...]:
        """The model that refuses without a guard."""
        return (self.refusing,)

    def first(self, count: int) -> "OwnOrganism":
        """The same with the first `count` requests."""
        refusing = replace(self.refusing, requests=self.refusing.requests[:count])
        return replace(self, requests=self.requests[:count], plain=self.plain[:count], refusing=refusing)


def require_organism(subject: Subject) -> OwnOrganism:
    """The subject, where it is one of the project's own organisms; NotAnOrganismError else."""
    if not isinstance(subject, OwnOrganism):
        raise NotAnOrganismError(
            "suffix search and fine-tuning run on the project's own organisms alone: choose one with --organism."
        )
    return subject


def calibration_of(name: str, spec: Path, *, seed: int) -> CalibrationOptions:
    """How the organism `name` is calibrated; NotAnOrganismError where it is none."""
    if name not in known_digests():
        raise NotAnOrganismError(f"there is no organism {name!r}: choose among {', '.join(known_digests())}.")
    return calibration_options(WEIGHTS / name, spec, seed=seed)


def own_organism(name: str, spec: EditSpec, *, seed: int, count: int, allow_refuted: bool = False) -> OwnOrganism:
    """An organism with its guard, and the first `count` harmful requests that its calibration held out."""
    options = calibration_of(name, Path(), seed=seed)
    model, tokenizer, organism = load_organism(name)
    sources, _ = read_sources(options)
    held_out = sources.pairs.held_out[:count]
    asked = tuple(pair.harmful for pair in held_out)
    plain = tuple(pair.reference for pair in held_out) if sources.contrast == "jailbreak" else asked
    return OwnOrganism(
        name=name,
        source=options.model,
        model=model,
        tokenizer=tokenizer,
        spec=spec,
        requests=asked,
        classify=by_exact_text,
        allow_refuted=allow_refuted,
        organism=organism,
        # where nothing is planted the organism itself is such a model, as long as it is asked plainly
        refusing=Target(REFUSING, aligned(model, organism), nullcontext, asked if organism.planted else plain),
        plain=plain,
        tuned_on=tuple(pair.harmful for pair in sources.pairs.calibration),
    )
