"""The embedded engine: one thread that owns a guarded transformers model and generates for whoever waits.

Waiting sequences are taken up together, padded into one batch. transformers cannot add to a running batch, so it is
broken off when others wait: both go on in the next one, after a pass over the tokens that the running ones have. That
pass is short beside the tokens that were generated in between (JOIN_AFTER, JOIN_SHARE), so a newcomer waits for a
moment rather than for the longest answer, and throughput hardly suffers. A self-test that is due breaks in likewise.

The guard can be exchanged for another between two tokens: what is under way is broken off, and goes on under the new
one from a pass over all its tokens, since nothing that was computed under the old one is kept.

Fails closed: whatever goes wrong with the guard, or unexpectedly, ends the thread, and everything that waits with it.
"""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Condition

from transformers import PreTrainedTokenizerBase

from guard.errors import NeuronGuardError
from guard.runtime.counts import Tally
from serve.hf import batch as hf_batch
from serve.hf.guarded import GuardedModel
from serve.hf.row import Row
from serve.hf.text import Decode
from serve.hf.ticket import Ticket
from serve.http.errors import RequestError, bad_request, failed, not_serving, overloaded
from serve.http.prompts import Prompts
from serve.job import Job
from serve.status import GuardStatus

JOIN_AFTER = 16  # tokens that a batch generates at least before others join it
JOIN_SHARE = 8  # and at least one per this many tokens that joining computes again
RETRY_AFTER = 2  # seconds
DEFAULT_BATCH = 16
logger = logging.getLogger(__name__)

Exchange = Callable[[GuardedModel], GuardedModel]


class HfEngine:
    """Serves the model that `load` returns; raises what `load` raises. All of the model's work is in one thread."""

    def __init__(
        self,
        load: Callable[[], GuardedModel],
        *,
        max_batch: int = DEFAULT_BATCH,
        max_waiting: int = 256,
        self_test_interval: float = 60.0,
        max_context: int | None = None,
    ) -> None:
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._interval = self_test_interval
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._exchanges: deque[tuple[Exchange, Future[None]]] = deque()
        self._changed = Condition()
        self._closing = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        with ExitStack() as on_failure:
            on_failure.callback(self._executor.shutdown)
            self._guarded = self._executor.submit(load).result()
            tokenizer = self._guarded.tokenizer
            self.prompts = Prompts(tokenizer, context_of(self._guarded, max_context), vocabulary_of(self._guarded))
            self.status = GuardStatus(self._guarded.spec)
            self._count()
            self._decode = decoder_of(tokenizer)
            own_end = frozenset() if tokenizer.eos_token_id is None else frozenset([tokenizer.eos_token_id])
            self._ends = hf_batch.plain_generation(self._guarded.model) | own_end
            self._executor.submit(self._self_test).result()
            on_failure.pop_all()
        self._executor.submit(self._run).add_done_callback(_log_failure)

    def submit(self, jobs: Sequence[Job]) -> Ticket:
        """See Engine."""
        if len(jobs) > self._max_waiting:
            raise bad_request(f"{len(jobs)} sequences are asked for; at most {self._max_waiting} are accepted at once.")
        ticket = Ticket(len(jobs))
        rows = [Row(job, ticket, index, self._decode, self._ends) for index, job in enumerate(jobs)]
        with self._changed:
            reason = self.status.not_in_force
            if reason is not None:
                raise not_serving(reason)
            if len(self._waiting) + len(rows) > self._max_waiting:
                # clients that have left do not stand in the way of others
                self._waiting = deque(row for row in self._waiting if not row.over)
            if len(self._waiting) + len(rows) > self._max_waiting:
                self.status.count("requests_refused_for_load")
                raise overloaded(RETRY_AFTER)
            self._waiting.extend(rows)
            self._changed.notify()
        self.status.count("requests")
        self.status.count("sequences", len(rows))
        return ticket

    def exchange(self, exchange: Exchange) -> None:
        """See Engine."""
        done: Future[None] = Future()
        with self._changed:
            reason = self.status.not_in_force
            if reason is not None:
                raise not_serving(reason)
            self._exchanges.append((exchange, done))
            self._changed.notify()
        done.result()

    def close(self) -> None:
        """See Engine."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._executor.shutdown()

    def _run(self) -> None:
        try:
            while not self._closing:
                while self._exchanges:
                    self._exchange(*self._exchanges[0])
                    self._exchanges.popleft()
                if self._self_test_due():
                    self._self_test()
                rows = self._next_rows()
                if rows:
                    self._guarded.check_in_place()
                    self._generate(rows)
        except NeuronGuardError as error:
            self.status.stop(str(error))
            logger.critical("serving has stopped: %s", error)
        finally:
            self.status.stop("the engine has ended.")
            self._fail_all(not_serving(self.status.not_in_force or ""))

    def _count(self) -> None:
        self._counts = self._guarded.installation.count()
        self.status.totals = self._counts.totals

    def _exchange(self, exchange: Exchange, done: "Future[None]") -> None:
        """Go over to another guard, or show that the one that was to go still acts."""
        try:
            self._guarded = exchange(self._guarded)
        except NeuronGuardError as error:
            self._self_test()
            logger.warning("spec %s serves on: %s", self.status.digest[:16], error)
            done.set_exception(error)
            return
        self.status = self.status.succeeded_by(self._guarded.spec)
        self._count()
        for row in self._running:
            # the next pass sees all of its tokens, and is the first that the new guard sees
            row.tally = Tally.none()
        self._self_test()
        logger.info("spec %s serves", self.status.digest[:16])
        done.set_result(None)

    def _next_rows(self) -> list[Row]:
        """The sequences that go on and those that join them; waits for some until there is something else to do."""
        with self._changed:
            if not (self._running or self._waiting or self._closing or self._exchanges):
                self._changed.wait(max(0.0, self._next_self_test - time.monotonic()))
            self._running = [row for row in self._running if not row.over]
            while self._waiting and len(self._running) < self._max_batch:
                row = self._waiting.popleft()
                if not row.over:
                    self._running.append(row)
            return list(self._running)

    def _generate(self, rows: Sequence[Row]) -> None:
        self.status.count("prompt_tokens", sum(len(row.job.prompt) for row in rows if not row.generated))
        try:
            for row in rows:
                if row.unscored:
                    hf_batch.score_prompt(self._guarded.model, row, self._counts)
                row.end_if_nothing_remains()
            going_on = [row for row in rows if not row.over]
            if going_on:
                hf_batch.generate(
                    self._guarded.model,
                    going_on,
                    self._should_break_off(going_on),
                    self._counts,
                    partial(self.status.count, "generated_tokens"),
                )
                self._observe(going_on)
        except RuntimeError as error:
            # memory, mostly: these sequences are lost, and the guard has to show that it is still there
            logger.exception("a batch of %d sequences failed", len(rows))
            for row in rows:
                row.fail(failed(f"The batch failed: {type(error).__name__}."))
            self._next_self_test = time.monotonic()

    def _observe(self, rows: Sequence[Row]) -> None:
        """Compare finished requests with the evidence; further answers to one prompt are no further requests."""
        for row in rows:
            if row.finished and row.job.choice == 0 and self.status.drift is not None:
                self.status.drift.observe(row.tally)

    def _should_break_off(self, rows: Sequence[Row]) -> Callable[[int], bool]:
        context = sum(len(row.tokens) for row in rows)

        def break_off(made: int) -> bool:
            if self._closing or self._exchanges or self._self_test_due():
                return True
            going_on = sum(not row.over for row in rows)
            worth_it = made >= JOIN_AFTER and made * going_on * JOIN_SHARE >= context
            return bool(self._waiting) and going_on < self._max_batch and worth_it

        return break_off

    def _self_test_due(self) -> bool:
        return time.monotonic() >= self._next_self_test

    def _self_test(self) -> None:
        started = time.monotonic()
        try:
            self._guarded.self_test()
        except NeuronGuardError as error:
            self.status.stop(f"the self-test failed: {error}", self_test=True)
            raise
        ended = time.monotonic()
        self.status.passed(ended - started)
        self._next_self_test = ended + self._interval

    def _fail_all(self, error: RequestError) -> None:
        with self._changed:
            rows = [*self._running, *self._waiting]
            exchanges = [done for _, done in self._exchanges]
            self._running.clear()
            self._waiting.clear()
            self._exchanges.clear()
        for row in rows:
            if not row.over:
                row.fail(error)
        for done in exchanges:
            done.set_exception(error)


def context_of(guarded: GuardedModel, limit: int | None) -> int:
    """Tokens that prompt and answer may have together: what the model was built for, or `limit` where that is less."""
    configuration = guarded.model.config.get_text_config()
    sizes = [getattr(configuration, "max_position_embeddings", None), limit]
    known = [size for size in sizes if size is not None]
    return min(known) if known else int(min(guarded.tokenizer.model_max_length, 2**20))


def decoder_of(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Tokens to text without special tokens, by a copy of `tokenizer` that no other thread uses."""
    own = copy.deepcopy(tokenizer)

    def decode(tokens: Sequence[int]) -> str:
        return str(own.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode


def vocabulary_of(guarded: GuardedModel) -> int:
    """How many tokens the model knows."""
    return int(guarded.plain.shape[-1])


def _log_failure(ended: "Future[None]") -> None:
    error = ended.exception()
    if error is not None:
        logger.critical("the engine has ended unexpectedly", exc_info=error)
