"""One sequence under way in the embedded engine: what it has so far, and what of it may be handed to the client."""

from collections.abc import Collection, Sequence

from guard.runtime.counts import Tally
from serve.hf.sampling import generator_for
from serve.hf.text import Decode, Detokenizer, StopText
from serve.hf.ticket import Ticket
from serve.http.errors import RequestError
from serve.job import Finish, Job, Piece, TokenLogprob


class Row:
    """The `index`-th sequence of a ticket. For the engine's thread alone.

    `tally` is what the guard did to its tokens; the last one generated is not among them, as no pass has seen it.
    """

    def __init__(self, job: Job, ticket: Ticket, index: int, decode: Decode, ends: Collection[int]) -> None:
        self.job = job
        self.generator = generator_for(job.sampling.seed, job.choice)
        self.generated: list[int] = []
        self.finished = False
        self.tally = Tally.none()
        self._ticket = ticket
        self._index = index
        self._ends = ends
        self._text = Detokenizer(decode, job.prompt)
        self._stop = StopText(job.sampling.stop)
        self._prompt: tuple[TokenLogprob | None, ...] | None = None
        self._pending: list[TokenLogprob] = []

    @property
    def tokens(self) -> list[int]:
        """The prompt and what was generated."""
        return [*self.job.prompt, *self.generated]

    @property
    def remaining(self) -> int:
        """How many tokens it may still generate."""
        return self.job.sampling.max_tokens - len(self.generated)

    @property
    def over(self) -> bool:
        """Whether nothing more is to be generated: finished, or nobody waits for it."""
        return self.finished or self._ticket.cancelled

    @property
    def unscored(self) -> bool:
        """Whether the prompt's log probabilities are still to be had."""
        return self.job.score_prompt and self._prompt is None

    def scored(self, prompt: tuple[TokenLogprob | None, ...]) -> None:
        """Take the prompt's log probabilities."""
        self._prompt = prompt

    def end_if_nothing_remains(self) -> None:
        """Finish a job that asked for no tokens."""
        if not self.remaining and not self.finished:
            self._hand_over("", "length", self._prompt)

    def take(self, token: int, logprob: TokenLogprob | None) -> None:
        """Add the next token, hand over the text that it completes, and finish where it ends the sequence."""
        first = not self.generated
        self.generated.append(token)
        if logprob is not None and token not in self._ends:
            self._pending.append(logprob)
        finish: Finish | None = None
        if token in self._ends:
            shown, finish = self._rest(), "stop"
        else:
            shown, stopped = self._stop.add(self._text.add(token))
            if stopped:
                finish = "stop"
            elif not self.remaining:
                shown, finish = shown + self._rest(), "length"
        if shown or finish or first:
            self._hand_over(shown, finish, self._prompt if first else None)

    def fail(self, error: RequestError) -> None:
        """End the whole request with `error`."""
        self.finished = True
        self._ticket.fail(error)

    def _rest(self) -> str:
        shown, stopped = self._stop.add(self._text.rest())
        return shown if stopped else shown + self._stop.rest()

    def _hand_over(self, text: str, finish: Finish | None, prompt: Sequence[TokenLogprob | None] | None) -> None:
        self.finished = finish is not None
        self._ticket.put(
            self._index,
            Piece(
                text=text,
                tokens=len(self.generated),
                logprobs=tuple(self._pending),
                finish=finish,
                prompt=None if prompt is None else tuple(prompt),
            ),
        )
        self._pending = []
