"""The numbers of a trace: one frozen document that the terminal, the page and the JSON file all show.

Everything that is shown is in here, so that the three cannot disagree; and nothing is in here that may not be shown:
text that is left out of the page is left out of the document.
"""

from typing import Literal

from calibration.judging.behaviour import Behaviour
from guard.spec.measures import Count, Finite, Frozen, Share

View = Literal["layer", "attention", "mlp"]
Module = Literal["embedding", "attention", "mlp"]
VIEWS: tuple[View, ...] = ("layer", "attention", "mlp")


class Column(Frozen):
    """One column of the map: a token of the prompt, or the step of the reply at which both forced replies go on.

    `text` is the prompt's token. For a reply step it is None where the reply is left out; `refusal` is then the token
    of the refusal, None where that has ended.
    """

    part: Literal["prompt", "reply"]
    text: str | None
    refusal: str | None = None


class Reply(Frozen):
    """A forced reply: where it comes from, its length in tokens, and its text, None where it is left out."""

    source: str
    tokens: Count
    text: str | None
    digest: str
    words: str


class Step(Frozen):
    """Y read directly off the residual stream after a module, through the final norm and the unembedding; nats."""

    layer: Count
    module: Module
    reading: Finite


class ModuleEffect(Frozen):
    """What a module carries at all aligned tokens, nats: `removed` is what Y loses with its replacement (TNIE where
    there is another prompt), `brought` what it brings into the other prompt's run (NIE; None without one)."""

    layer: Count
    kind: View
    removed: Finite
    brought: Finite | None


class Map(Frozen):
    """Effects on Y of one kind of mediator, each at one layer and one column: [layers][columns] nats.

    None where the two prompts do not line up. `run` says which were run; the others are linear estimates.
    """

    view: View
    effects: tuple[tuple[Finite | None, ...], ...]
    run: tuple[tuple[bool, ...], ...]


class Written(Frozen):
    """A token, and what a neuron adds to its logit."""

    token: str
    logit: Finite


class Neuron(Frozen):
    """One neuron: its effect on Y, what excites it, what it writes.

    `effect`: what Y loses when it is replaced at all aligned tokens, nats; `by_column` [columns]: at each alone, None
    where the prompts do not line up. `run` and `run_by_column` where they were run, else linear estimates.
    `activations` are its values on the prompt's tokens, `other` on the other prompt's. It promotes and demotes the
    tokens given at its largest activation on the prompt, that of token `peak`.
    """

    layer: Count
    neuron: Count
    effect: Finite
    run: bool
    role: Literal["found", "gate", "set"]
    activations: tuple[Finite, ...]
    other: tuple[Finite, ...] | None
    by_column: tuple[Finite | None, ...]
    run_by_column: bool
    peak: Count
    promoted: tuple[Written, ...]
    demoted: tuple[Written, ...]


class FirstToken(Frozen):
    """A token that the reply may begin with, and how likely it is."""

    text: str
    probability: Share


class Answer(Frozen):
    """A greedy answer: its class, and its text, None where that is left out (`digest` and `words` stand for it)."""

    behaviour: Behaviour
    text: str | None
    digest: str
    words: str


class Case(Frozen):
    """One way to run the model: plain, with the guard on, with neurons set. Y and its two halves, nats per token.

    `readings` [1 + 2 layers] are Y read after each module. `withheld` says, in a sentence, why there is no answer and
    no first token.
    """

    name: Literal["plain", "guard on", "set", "set, guard on"]
    outcome: Finite
    compliance: Finite
    refusal: Finite
    readings: tuple[Finite, ...]
    first_tokens: tuple[FirstToken, ...]
    answer: Answer | None
    withheld: str | None


class GuardedLayer(Frozen):
    """What a guard changes in one layer: how many neurons at each column."""

    layer: Count
    neurons: Count
    changed: tuple[Count, ...]


class GuardAtWork(Frozen):
    """The guard on this prompt, column by column, along the reply that complies.

    `scores` is the trigger's read-out and `threshold` its limit (None without a trigger); `active` says where the edit
    acts; `effects` what Y loses by the edit at that column alone, nats, None where it changes nothing.
    """

    trigger_layer: Count | None
    threshold: Finite | None
    scores: tuple[Finite, ...] | None
    active: tuple[bool, ...]
    layers: tuple[GuardedLayer, ...]
    effects: tuple[Finite | None, ...]


class Turn(Frozen):
    """Where Y turns: the module from which on its direct reading keeps the sign that Y has, and its reading there."""

    layer: Count
    module: Module
    reading: Finite


class Trace(Frozen):
    """Everything that was measured of one prompt on one model.

    `outcome` is Y on the prompt, `reference` on the other one. `replacement` says what mediators were replaced with.
    `lens` [1 + layers][prompt columns]: log-odds of the first tokens in which the two replies differ, read off the
    residual stream that enters the first layer and leaves each. `sets` are the breaks as they were asked for.
    """

    model: str
    model_type: str
    layers: Count
    d_ff: Count
    spec: str | None
    columns: tuple[Column, ...]
    other_tokens: tuple[str, ...] | None
    compliance: Reply
    refusal: Reply
    replacement: Literal["mean of the prompt's tokens", "the other prompt's run"]
    outcome: Finite
    reference: Finite | None
    turn: Turn
    steps: tuple[Step, ...]
    modules: tuple[ModuleEffect, ...]
    maps: tuple[Map, ...]
    lens: tuple[tuple[Finite, ...], ...]
    neurons: tuple[Neuron, ...]
    sets: tuple[str, ...]
    cases: tuple[Case, ...]
    guard: GuardAtWork | None
    shows_text: bool
