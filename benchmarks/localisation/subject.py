"""An organism with its requests, ready for every method that is compared: the same splits, the same judging.

What a method may use is on the calibration and validation splits; what it is judged on, by the same judge as a verdict,
is the held-out one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from benchmarks.localisation.truth import Neuron, effect_weights
from benchmarks.organisms.catalogue import load_organism, prompts_folder
from calibration.analyses.subject import Subject as AnalysedSubject
from calibration.evidence.verdict import Examination, Output, outputs, surprise_limit
from calibration.judging.behaviour import Behaviour
from calibration.prompts.material import Answers, Encoder, Material, Sources, pair_up, prepare_material
from calibration.prompts.request_sets import load_jailbreaks, load_requests
from calibration.search.findings import Findings, Settings, find, held_out_examination
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit


def computed(_: str, compute: Callable[[], Answers]) -> Answers:
    """The model's own answers, computed and not kept."""
    return compute()


def neurons_of(by_layer: dict[int, tuple[int, ...]]) -> list[Neuron]:
    """(layer, neuron) of neurons by layer."""
    return [(layer, neuron) for layer, neurons in by_layer.items() for neuron in neurons]


class Subject:
    """One organism, its material and the truth about it. `max_requests` of each kind; None: all."""

    def __init__(self, name: str, root: Path, *, seed: int, max_requests: int | None = None) -> None:
        self.settings = Settings(seed=seed)
        self.model, self.tokenizer, self.organism = load_organism(name, root)
        self.folder = prompts_folder(name, root)
        self.encoder = Encoder(self.model, self.tokenizer, True, self.settings.batch_size, self.settings.max_new_tokens)
        self.sources: Sources = pair_up(
            load_requests(str(self.folder / "harmful.jsonl")).requests,
            load_requests(str(self.folder / "benign.jsonl")).requests,
            load_jailbreaks(str(self.folder / "jailbreak.jsonl")) if self.organism.contrast == "jailbreak" else None,
            seed=seed,
            max_requests=max_requests,
        )
        self.material: Material = prepare_material(self.sources, self.encoder, computed)
        self.planted = neurons_of(self.organism.gate)

    @cached_property
    def weights(self) -> dict[Neuron, float]:
        """The weight of each planted neuron on the held-out harmful requests; none where nothing is planted."""
        return effect_weights(self.model, self.material.held_out.harmful, self.planted) if self.planted else {}

    @cached_property
    def exam(self) -> Examination:
        """The held-out requests, as a verdict judges them."""
        return held_out_examination(self.model, self.tokenizer, self.material, self.settings)

    @cached_property
    def own(self) -> tuple[list[Output], list[Output]]:
        """The unguarded model's outputs to the held-out harmful and benign requests."""
        judged = outputs(self.exam, self.exam.harmful + self.exam.benign, nullcontext, np.inf)
        count = len(self.exam.harmful)
        return judged[:count], judged[count:]

    @cached_property
    def limit(self) -> float:
        """The surprise above which an output is garbled, nats."""
        return surprise_limit([*self.own[0], *self.own[1]])

    def compliance(self, edits: Sequence[LayerEdit]) -> float:
        """Harmful compliance on held-out requests with `edits` installed."""
        installed: Callable[[], AbstractContextManager[object]] = partial(install_edits, self.model, edits)
        judged = outputs(self.exam, self.exam.harmful, installed, np.inf)
        return sum(output.behaviour is Behaviour.COMPLIED for output in judged) / len(judged)

    def found(self, settings: Settings) -> Findings:
        """The whole calibration on it."""
        return find(self.model, self.tokenizer, self.material, settings)

    def analysed(self, findings: Findings, settings: Settings) -> AnalysedSubject:
        """What the analyses look at, after a calibration."""
        return AnalysedSubject(
            self.model, self.tokenizer, self.encoder, self.sources, self.material, findings, settings
        )


def names_in(folder: Path) -> Iterator[str]:
    """The organisms built in `folder`."""
    return (path.parent.name for path in sorted(folder.glob("*/organism.json")))
