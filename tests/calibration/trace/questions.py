"""A tiny model that can be asked, with specs for it: for the tests of what a trace tells and leaves out."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

from calibration.trace.document import Trace
from calibration.trace.measure import Question, trace
from guard.spec.edit_spec import EditSpec, LayerEdit, Trigger
from guard.spec.fingerprint import fingerprint
from tests.calibration.example_spec import example_spec
from tests.calibration.trace.subjects import tokenizer
from tests.conftest import make_tiny_model

PROMPT = "w3 w14 w15 w9 w26 w5 w35"
REFUSAL = "w40 w41 w42"


@cache
def model() -> Any:
    """Three layers, in float32."""
    return make_tiny_model(seed=4)


def spec(edit: LayerEdit, trigger: Trigger | None = None, *, effective: bool = True) -> EditSpec:
    """A spec for the model with one edit; its evidence is made up."""
    made = example_spec(effective=effective)
    evidence = made.evidence.model_copy(
        update={
            "neurons": (),
            "analyses": None,
            "held_out": made.evidence.held_out.model_copy(update={"benign_rates": None}),
        }
    )
    return made.model_copy(
        update={
            "model": fingerprint(model(), [edit.layer], tokenizer()),
            "layers": (edit,),
            "trigger": trigger,
            "evidence": evidence,
        }
    )


def held(layer: int, neuron: int, value: float) -> LayerEdit:
    return LayerEdit(layer=layer, neurons=(neuron,), scale=(1.0,), lower=(value,), upper=(value,))


def below(layer: int, neuron: int, value: float) -> LayerEdit:
    return LayerEdit(layer=layer, neurons=(neuron,), scale=(1.0,), lower=(-math.inf,), upper=(value,))


def asked(*, guard: EditSpec | None = None, allow_refuted: bool = False, **settings: Any) -> Trace:
    """The trace of the prompt with `settings` of the question."""
    question = replace(Question("a model", PROMPT, template=False, max_new_tokens=6), **settings)
    return trace(model(), tokenizer(), question, spec=guard, allow_refuted=allow_refuted)


@cache
def plain() -> Trace:
    """The trace with nothing set, on given replies."""
    return asked(refusal=REFUSAL)


def sign_of(lowers: bool) -> str:
    """A break of the neuron that carries most on the prompt, which lowers Y, or raises it, on both pairs of replies."""
    found = plain()
    for neuron in sorted(found.neurons, key=lambda each: -abs(each.effect)):
        for value in (0.0, 8.0, -8.0, 30.0, -30.0):
            text = f"L{neuron.layer}.N{neuron.neuron}={value}"
            case = asked(refusal=REFUSAL, sets=(text,)).cases[1]
            if lowers == (case.withheld is None):
                return text
    raise AssertionError("no neuron moves Y that way")
