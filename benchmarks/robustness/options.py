"""What a user can ask of `neuron-guard bench robustness`. Nothing of it names a model for the adaptive attacks."""

from typing import get_args

from pydantic import model_validator

from benchmarks.robustness.attacks.suffix import Budget
from benchmarks.robustness.result import AttackName
from benchmarks.safety.options import SubjectOptions
from guard.errors import NeuronGuardError
from guard.spec.measures import Frozen

ADAPTIVE: frozenset[AttackName] = frozenset({"suffix", "fine-tuning"})


class RobustnessOptionsError(NeuronGuardError):
    """Options that do not say what is attacked, or ask for what may not be attacked."""


class Size(Frozen):
    """How much is tried: requests asked and requests searched for, steps of fine-tuning, the budget of a search."""

    requests: int
    searched: int
    steps: tuple[int, ...]
    budget: Budget


QUICK = Size(requests=32, searched=12, steps=(5, 20), budget=Budget(steps=10, candidates=32))
FULL = Size(requests=128, searched=32, steps=(1, 2, 5, 10, 20, 40), budget=Budget())


class Options(SubjectOptions):
    """The options of the benchmark. RobustnessOptionsError where they contradict each other."""

    attacks: tuple[AttackName, ...] = ()
    quick: bool = False
    batch_size: int = 32

    @model_validator(mode="after")
    def _say_one_thing(self) -> "Options":
        if (self.model is None) == (self.organism is None):
            raise RobustnessOptionsError("name one model to attack: MODEL with --spec, or --organism NAME.")
        if self.model is not None and self.spec is None:
            raise RobustnessOptionsError("MODEL is attacked behind its guard: name the spec with --spec.")
        if self.model is not None and ADAPTIVE & set(self.attacks):
            raise RobustnessOptionsError(
                "suffix search and fine-tuning run on the project's own organisms alone: choose one with --organism."
            )
        return self

    @property
    def size(self) -> Size:
        """How much is tried."""
        return QUICK if self.quick else FULL

    @property
    def chosen(self) -> tuple[AttackName, ...]:
        """The attacks to run, in their order: those named, else all that this subject may be put to."""
        names: tuple[AttackName, ...] = get_args(AttackName)
        return tuple(
            one for one in names if (one in self.attacks or not self.attacks) and (self.organism or one not in ADAPTIVE)
        )
