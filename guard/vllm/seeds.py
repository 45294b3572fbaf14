"""Seeded requests on a CPU whose prompt vLLM takes up in parts: what it draws after a part is nobody's token.

vLLM throws that token away and winds the request's generator back by an offset. A CPU's generator has none, so its
engine ends there, with everybody's requests: one client with a seed, on a busy server, stops the serving (seen in vLLM
0.32). In such a pass these rows draw from copies instead, and their own generators stay where they were.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class ThrownAway(torch.Generator):
    """A generator for one pass, which there is no need to wind back."""

    @classmethod
    def copy(cls, generator: torch.Generator) -> "ThrownAway":
        """One that draws what `generator` would draw next."""
        copied = cls(generator.device)
        copied.set_state(generator.get_state())
        return copied

    def get_offset(self) -> int:
        """None is kept."""
        return 0

    def set_offset(self, _offset: int) -> torch.Generator:
        """Nothing to do."""
        return self


@contextmanager
def drawing_from_copies(generators: dict[int, torch.Generator], rows: Iterable[int]) -> Iterator[None]:
    """Within the block those of `rows` that have one of the `generators` draw from a copy of it, made here."""
    own = {row: generators[row] for row in rows if row in generators}
    generators.update({row: ThrownAway.copy(generator) for row, generator in own.items()})
    try:
        yield
    finally:
        generators.update(own)
