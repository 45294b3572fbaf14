"""What the endpoint asks of an engine.

The endpoint knows HTTP and OpenAI's documents; an engine knows tokens and models. Between them go jobs and pieces.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from serve.hf.guarded import GuardedModel
from serve.hf.ticket import Ticket
from serve.http.prompts import Prompts
from serve.job import Job
from serve.status import GuardStatus


class Engine(Protocol):
    """A guarded model that turns jobs into pieces."""

    @property
    def status(self) -> GuardStatus:
        """The guard's state."""
        ...

    @property
    def prompts(self) -> Prompts:
        """The model's tokenizer and chat template, and how long a prompt may be."""
        ...

    def submit(self, jobs: Sequence[Job]) -> Ticket:
        """Queue `jobs`; called in the event loop. RequestError where they cannot be served: 429, 503."""
        ...

    def exchange(self, exchange: Callable[[GuardedModel], GuardedModel]) -> None:
        """Serve what `exchange` makes of the guarded model, in the engine's thread; waits for its self-test to pass.

        Raises what `exchange` raises; the old guard has then passed one and serves on. RequestError where none is in
        force. Not for the event loop.
        """
        ...

    def close(self) -> None:
        """Stop generating, fail what is under way, and wait for the engine to end."""
        ...
