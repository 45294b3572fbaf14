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
from benchmarks.safety.prompt_sets import PUBLISHED_ATTACKS, available, choose
from calibration.prompts import PLACEHOLDER, Request


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
        attacked = choose(one, data, suite="quick", seed=seed, seen=seen).requests[:count]
        plain = tuple(request.model_copy(update={"prompt": request.goal or request.prompt}) for request in attacked)
        attacks.append(StaticAttack(one.name, plain, attacked))
    return attacks


def replay(
    subject: Subject, attacks: Sequence[StaticAttack], *, advance: Callable[[int], None] = lambda _: None
) -> AttackResult:
    """Ask each attack's requests plain and attacked, without the guard and with it. `advance` is told of each."""
    rows: list[Row] = []
    for one in attacks:
        if one.attacked:
            for target in subject.targets():
                before, after = subject.says(target, one.plain), subject.says(target, one.attacked)
                rows.append(row(one.name, target.name, before, after))
        advance(1)
    missing = () if rows else ("No attack prompts were replayed: name the folder that has JailbreakBench's.",)
    return AttackResult(attack="replay", setting={}, rows=tuple(rows), left_out=missing)
