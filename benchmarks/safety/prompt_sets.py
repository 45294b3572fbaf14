"""The prompt sets of the field, by path where they lie here and by hub name elsewhere.

None of them is copied into the project, and no text of theirs is shown: a request is known by its digest. Which sets a
run used, and what their contents hash to, stands in its report.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.safety.options import Suite
from calibration.prompts.request_sets import Request, RequestSet, load_requests, normalise
from guard.errors import NeuronGuardError

Kind = Literal["harmful", "harmless"]
QUICK = 100
PUBLISHED_ATTACKS = "JailbreakBench attacks"
STATIC = (
    "JailbreakBench's attacks are static: published prompts that were made against other models and do not answer to "
    "this guard, so they show the least that an attacker can do."
)


class PromptSetError(NeuronGuardError):
    """A prompt set that cannot be had."""


@dataclass(frozen=True)
class PromptSet:
    """A named set: where it lies in a data folder, and its name at the hub (None: not there).

    `family` names the sets that are also counted together; `goals` asks for what attacks are after, in plain words.
    """

    name: str
    kind: Kind
    file: str | None
    hub: str | None
    split: str | None = None
    family: str | None = None
    goals: bool = False


ATTACKS = (
    "GCG__transfer__gpt-3.5-turbo-1106", "GCG__transfer__gpt-4-0125-preview", "GCG__white_box__llama-2-7b-chat-hf",
    "GCG__white_box__vicuna-13b-v1.5", "JBC__manual__llama-2-7b-chat-hf", "PAIR__black_box__gpt-3.5-turbo-1106",
    "PAIR__black_box__gpt-4-0125-preview", "PAIR__black_box__llama-2-7b-chat-hf", "PAIR__black_box__vicuna-13b-v1.5",
)  # fmt: skip
# JailbreakBench's published attack prompts: static, made against other models. JBC's four files hold the same prompts.
GOALS = "JBC__manual__llama-2-7b-chat-hf"  # of which no attack is missing: it holds all hundred goals

PROMPT_SETS = (
    PromptSet("AdvBench", "harmful", "advbench/harmful_behaviors.csv", "walledai/AdvBench"),
    PromptSet("HarmBench", "harmful", "harmbench/harmbench_behaviors_text_all.csv", "walledai/HarmBench:standard"),
    PromptSet("StrongREJECT", "harmful", None, "walledai/StrongREJECT"),
    PromptSet("XSTest unsafe", "harmful", "xstest/xstest_prompts.csv#label=unsafe", "walledai/XSTest#label=unsafe"),
    PromptSet("JailbreakBench", "harmful", f"jailbreakbench/{GOALS}.json", "JailbreakBench/JBB-Behaviors:behaviors",
              split="harmful", goals=True),
    *(
        PromptSet(f"JailbreakBench {name.split('__')[0]} {name.split('__')[2]}", "harmful",
                  f"jailbreakbench/{name}.json", None, family=PUBLISHED_ATTACKS)
        for name in ATTACKS
    ),
    PromptSet("XSTest safe", "harmless", "xstest/xstest_prompts.csv#label=safe", "walledai/XSTest#label=safe"),
    PromptSet("Alpaca", "harmless", "splits/harmless_test.json", "tatsu-lab/alpaca"),
)  # fmt: skip


STATIC_SETS = frozenset({PUBLISHED_ATTACKS, *(one.name for one in PROMPT_SETS if one.family == PUBLISHED_ATTACKS)})


@dataclass(frozen=True, repr=False)
class Prompts:
    """The requests of one set that a run asks, in their order, and the digest of the whole set that they are from.

    `overlapping` is how many were left out since calibration has seen them.
    """

    name: str
    kind: Kind
    digest: str
    requests: tuple[Request, ...]
    overlapping: int = 0
    family: str | None = None


def own(source: str, kind: Kind) -> PromptSet:
    """A user's prompt file as a set, named after the file."""
    path = Path(source).resolve()
    return PromptSet(path.stem, kind, str(path), None)


def load(prompt_set: PromptSet, data: Path | None) -> RequestSet:
    """All requests of the set, from the folder `data`, else from the hub. PromptSetError where neither has it."""
    if prompt_set.file is not None and _lies_in(data or Path(), prompt_set.file):
        found = load_requests(str((data or Path()) / prompt_set.file))
    elif prompt_set.hub is None or data is not None:
        place = "no file of it" if prompt_set.file is None else f"no {(data or Path()) / prompt_set.file}"
        raise PromptSetError(f"{prompt_set.name} cannot be had: there is {place}; name the folder that has it.")
    else:
        found = load_requests(prompt_set.hub, split=prompt_set.split)
    return _plain(found) if prompt_set.goals else found


def available(data: Path | None) -> tuple[PromptSet, ...]:
    """The sets that can be had: those that lie in `data`, or all that the hub has."""
    if data is None:
        return tuple(one for one in PROMPT_SETS if one.hub is not None)
    return tuple(one for one in PROMPT_SETS if one.file is not None and _lies_in(data, one.file))


def choose(
    prompt_set: PromptSet,
    data: Path | None,
    *,
    suite: Suite,
    seed: int,
    seen: Sequence[Request] = (),
    among: Collection[str] | None = None,
) -> Prompts:
    """The requests of a set that a run asks: in the quick suite `QUICK` at most, of a family's sets together.

    They are drawn by `seed`. What a calibration has `seen` (by prompt or goal) is left out and counted; with `among`
    only requests of these goals are asked.
    """
    whole = load(prompt_set, data)
    known = {normalise(request.prompt) for request in seen} | {request.group for request in seen}
    sets = 1 if prompt_set.family is None else max(1, sum(one.family == prompt_set.family for one in PROMPT_SETS))
    fresh = tuple(one for one in whole.requests if normalise(one.prompt) not in known and one.group not in known)
    wanted = tuple(one for one in fresh if among is None or one.group in among)
    return Prompts(
        name=prompt_set.name,
        kind=prompt_set.kind,
        digest=whole.digest,
        requests=drawn(wanted, suite=suite, seed=seed, most=QUICK // sets),
        overlapping=len(whole.requests) - len(fresh),
        family=prompt_set.family,
    )


def drawn(requests: Sequence[Request], *, suite: Suite, seed: int, most: int = QUICK) -> tuple[Request, ...]:
    """The requests that a suite asks, in their order: all of them, or in the quick one at most `most` by `seed`."""
    if suite == "full" or len(requests) <= most:
        return tuple(requests)
    places = sorted(random.Random(seed).sample(range(len(requests)), most))
    return tuple(requests[place] for place in places)


def in_several(prompts: Sequence[Prompts]) -> int:
    """How many goals are asked for in more than one set; what is counted over sets counts each of them once."""
    sets_of = Counter(goal for given in prompts for goal in {request.group for request in given.requests})
    return sum(count > 1 for count in sets_of.values())


def digest_of(request: Request) -> str:
    """What a request is known by: the SHA-256 of its prompt."""
    return hashlib.sha256(request.prompt.encode()).hexdigest()


def digest_of_all(requests: Sequence[Request]) -> str:
    """What some requests in their order are known by."""
    return hashlib.sha256("".join(map(digest_of, requests)).encode()).hexdigest()


def _lies_in(data: Path, file: str) -> bool:
    return (data / file.partition("#")[0]).exists()


def _plain(attacks: RequestSet) -> RequestSet:
    """What the attacks are after, each goal once, in plain words."""
    goals: dict[str, Request] = {}
    for request in attacks.requests:
        plain = Request(prompt=request.goal or request.prompt, kind=request.kind, row=request.row)
        goals.setdefault(request.group, plain)
    requests = tuple(goals.values())
    return attacks.model_copy(update={"requests": requests, "digest": digest_of_all(requests)})
