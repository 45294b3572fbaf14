"""Made-up traces of every shape, for the tests of the page and the terminal."""

import math

from calibration.judging.behaviour import Behaviour
from calibration.trace.cases import RISES
from calibration.trace.document import (
    VIEWS,
    Answer,
    Case,
    Column,
    FirstToken,
    GuardAtWork,
    GuardedLayer,
    Map,
    ModuleEffect,
    Neuron,
    Reply,
    Step,
    Trace,
    Written,
)  # fmt: skip
from calibration.trace.readings import as_steps, turn

WORDS = "<|user|> How do I heat the chain ? <|end|> <|assistant|>".split()

FIRST = tuple(FirstToken(text=f" t{at}", probability=0.5**at / 2) for at in range(5))


def _wave(at: float, scale: float = 1.0) -> float:
    return scale * math.sin(1.7 * at + 0.3)


def _neuron(layer: int, neuron: int, prompt: int, columns: int, missing: int, *, other: bool) -> Neuron:
    values = [_wave(layer + neuron + at, 5.0) for at in range(columns)]
    return Neuron(
        layer=layer,
        neuron=neuron,
        effect=_wave(layer * 3 + neuron, 0.4 + layer),
        run=neuron % 3 > 0,
        role="gate" if neuron == 1 else "set" if neuron == 2 else "found",
        activations=tuple(values[:prompt]),
        other=tuple(values[: prompt - 1]) if other else None,
        by_column=(None,) * missing + tuple(value / 9 for value in values[missing:]),
        run_by_column=neuron % 2 > 0,
        peak=max(range(prompt), key=lambda at: abs(values[at])),
        promoted=tuple(Written(token=f" up{at}", logit=5.0 - at) for at in range(5)),
        demoted=tuple(Written(token=f" down{at}", logit=at - 5.0) for at in range(5)),
    )


def _case(name: str, lean: float, steps: tuple[Step, ...], *, rises: bool = False) -> Case:
    answer = Answer(behaviour=Behaviour.COMPLIED, text=None, digest="c4f5b8cc14f4", words="9 words")
    if lean < 0:
        answer = Answer(behaviour=Behaviour.REFUSED, text="I cannot help.", digest="a85c8bed1310", words="3 words")
    return Case.model_validate(
        {
            "name": name,
            "outcome": lean,
            "compliance": -0.5,
            "refusal": -0.5 - lean,
            "readings": (*(step.reading for step in steps[:-1]), lean),
            "first_tokens": ()
            if rises
            else tuple(FirstToken(text=f" t{at}", probability=0.5**at / 2) for at in range(5)),
            "answer": None if rises else answer,
            "withheld": RISES if rises else None,
        }
    )


def example(
    words: list[str] = WORDS, layers: int = 6, *, against: bool = False, guard: bool = False, sets: bool = False,
    trigger: bool = True, name: str = "organisms/example",
) -> Trace:  # fmt: skip
    """A trace of `words` on a model of `layers`."""
    replies = [Column(part="reply", text=None, refusal=text) for text in (" cannot", " help", None)]
    columns = (*(Column(part="prompt", text=word) for word in words), *replies)
    missing = len(words) // 2 if against else 0
    steps = as_steps([_wave(at / layers, 2.0 + at / 9) for at in range(2 * layers)] + [2.21])
    kinds = VIEWS if against else VIEWS[1:]
    cases = [_case("plain", 2.21, steps)]
    cases += [_case("guard on", -1.3, steps)] if guard else []
    cases += [_case("set", 3.3, steps, rises=True)] if sets else []
    at_work = GuardAtWork(
        trigger_layer=1 if trigger else None,
        threshold=0.5 if trigger else None,
        scores=tuple(_wave(at) for at in range(len(columns))) if trigger else None,
        active=tuple(not trigger or _wave(at) > 0.5 for at in range(len(columns))),
        layers=(GuardedLayer(layer=layers - 1, neurons=4, changed=tuple(at % 5 for at in range(len(columns)))),),
        effects=tuple(None if at % 5 == 0 else _wave(at) for at in range(len(columns))),
    )

    def row(layer: int) -> tuple[float | None, ...]:
        return (None,) * missing + tuple(_wave(layer * 2.3 + at) for at in range(missing, len(columns)))

    return Trace(
        model=name,
        model_type="llama",
        layers=layers,
        d_ff=260,
        spec="guard.safetensors" if guard else None,
        columns=columns,
        other_tokens=tuple(words[:-1]) if against else None,
        compliance=Reply(source="the model's own answer", tokens=4, text=None, digest="c4f5b8cc14f4", words="6 words"),
        refusal=Reply(source="given", tokens=3, text="I cannot help", digest="a85c8bed1310", words="3 words"),
        replacement="the other prompt's run" if against else "mean of the prompt's tokens",
        outcome=2.21,
        reference=-1.79 if against else None,
        turn=turn(steps),
        steps=steps,
        modules=tuple(
            ModuleEffect(
                layer=layer, kind=kind, removed=_wave(layer + place), brought=_wave(layer) if against else None
            )
            for layer in range(layers)
            for place, kind in enumerate(kinds)
        ),
        maps=tuple(
            Map(
                view=view,
                effects=tuple(row(layer) for layer in range(layers)),
                run=tuple(tuple(at % 4 > 0 for at in range(len(columns))) for _ in range(layers)),
            )
            for view in VIEWS
        ),
        lens=tuple(tuple(_wave(layer + at, 9.0) for at in range(len(words))) for layer in range(layers + 1)),
        neurons=tuple(
            _neuron(layer, neuron, len(words), len(columns), missing, other=against)
            for layer in range(layers)
            for neuron in range(8)
        ),
        sets=("L5.N2=0", "L4.N2<=0.5") if sets else (),
        cases=tuple(cases),
        guard=at_work if guard else None,
        shows_text=False,
    )


def hostile(text: str) -> Trace:
    """A trace in which every text from outside is `text`."""
    made = example([text] * 5, guard=True, sets=True, against=True, name=text)
    reply = made.compliance.model_copy(update={"text": text})
    written = (Written(token=text, logit=1.0),)
    first = (FirstToken(text=text, probability=0.5),)
    answer = Answer(behaviour=Behaviour.COMPLIED, text=text, digest="0" * 12, words="1 word")
    return made.model_copy(
        update={
            "columns": tuple(each.model_copy(update={"text": text, "refusal": text}) for each in made.columns),
            "spec": text,
            "model_type": text,
            "other_tokens": (text,) * len(made.other_tokens or ()),
            "compliance": reply,
            "refusal": reply,
            "sets": (text,),
            "cases": tuple(each.model_copy(update={"first_tokens": first, "answer": answer}) for each in made.cases),
            "neurons": tuple(
                each.model_copy(update={"promoted": written, "demoted": written}) for each in made.neurons
            ),
        }
    )


EXAMPLES = {
    "plain": example(),
    "against": example(against=True),
    "guard and set": example(guard=True, sets=True),
    "no trigger": example(guard=True, trigger=False),
    "one layer": example(["a"], 1),
    "deep and long": example([f" token{at}" for at in range(150)], 80, guard=True, against=True),
}
