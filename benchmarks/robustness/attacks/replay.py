"""Replay static attack prompts: the same request plain, and as an attack wraps it.

The prompts were made elsewhere and do not answer to the guard, so what they show is a lower bound of what an attacker
can do. On a user's model they are JailbreakBench's published ones; on an organism wrappers of its language, those that
it was trained with and those that it has never seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.robustness.result import AttackResult, Row, row
from benchmarks.robustness.subject import Subject
from benchmarks.safety.context import fit, positions_of, sentence
from benchmarks.safety.prompt_sets import PUBLISHED_ATTACKS, available, choose
from calibration.prompts.request_sets import PLACEHOLDER, Request
from calibration.prompts.splits import sample


@dataclass(frozen=True, repr=False)
class StaticAttack:
    """A named attack: each request plain, and the same request attacked."""

    name: str
    plain: tuple[Request, ...]
    attacked: tuple[Request, ...]


def wrappers(name: str, templates: Sequence[str], plain: Sequence[Request]) -> StaticAttack:
    """Each plain request in one of the templates, in turn."""
    wrapped = tuple(
        request.model_copy(update={"prompt": templates[place % len(templates)].replace(PLACEHOLDER, request.prompt)})
        for place, request in enumerate(plain)
    )
    return StaticAttack(name, tuple(plain), wrapped)


def published(data: Path | None, *, count: int, seed: int, seen: Sequence[Request]) -> list[StaticAttack]:
    """JailbreakBench's attacks that lie in `data`, at most `count` requests of each that calibration has not `seen`;
    none without such a folder.
    """
    sets = [one for one in available(data) if one.family == PUBLISHED_ATTACKS and data is not None]
    attacks = []
    for one in sets:
        attacked = sample(choose(one, data, suite="full", seed=seed, seen=seen).requests, count, seed)
        plain = tuple(request.model_copy(update={"prompt": request.goal or request.prompt}) for request in attacked)
        attacks.append(StaticAttack(one.name, plain, attacked))
    return attacks


def replay(
    subject: Subject, attacks: Sequence[StaticAttack], *, advance: Callable[[int], None] = lambda _: None
) -> AttackResult:
    """Ask each attack's requests plain and attacked, without the guard and with it. `advance` is told of each.

    Attacks that do not fit into the model's context are left out and counted.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    for whole in attacks:
        one, long = _readable(subject, whole)
        left_out += [long] if long else []
        if one.attacked:
            for target in subject.targets():
                before, after = subject.says(target, one.plain), subject.says(target, one.attacked)
                rows.append(row(one.name, target.name, before, after))
        advance(1)
    if not rows:
        left_out.append("No attack prompts were replayed: name the folder that has JailbreakBench's.")
    return AttackResult(attack="replay", setting={}, rows=tuple(rows), left_out=tuple(left_out))


def _readable(subject: Subject, attack: StaticAttack) -> tuple[StaticAttack, str | None]:
    """The part of an attack that the model has positions for, and a sentence about the rest, if any."""
    positions = positions_of(subject.model)
    fitting = fit((len(subject.prompt(request)) for request in attack.attacked), positions, subject.max_new_tokens)
    plain, attacked = (
        tuple(one for one, fits in zip(requests, fitting, strict=True) if fits)
        for requests in (attack.plain, attack.attacked)
    )
    return StaticAttack(attack.name, plain, attacked), sentence(attack.name, fitting, positions)
