"""POST /guard/reload before vLLM: another spec takes over, on every rank and seen to act, or the old one serves on.

The graphs stay, and the workers write the new numbers over the old (guard/vllm/exchange.py). In this order: the file is
held to what a start asks of it, and every rank says whether it fits; no request is let in, and those that run end under
the old spec; vLLM's scheduler is paused, which empties its caches, since cached prefixes were computed under the old
spec; every rank exchanges and tests itself; all of them put the old one back where one failed; requests are let in.
From the exchange on each worker refuses to run anything until it is told that all are through. What cannot be settled
so ends the serving.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from guard.errors import NeuronGuardError, SpecError
from guard.spec.edit_spec import EditSpec
from guard.vllm.settings import GuardSettings, version
from serve.http.errors import RequestError, not_reloaded, not_serving
from serve.loading import load_spec
from serve.settings import Settings
from serve.status import GuardStatus

PATIENCE = 60.0  # seconds that requests under way have to end
POLL = 0.02  # seconds
TIMEOUT = 120.0  # seconds that the workers have for an answer
RETRY_AFTER = 2  # seconds
SEVERAL = RequestError(
    409,
    "A new spec cannot take over in several engines or API servers at once: start the server again to serve it.",
    code="reload_not_supported",
)
AT_IT = RequestError(409, "A reload is under way: wait for its end.", code="reload_under_way")
logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class UnsettledError(NeuronGuardError):
    """The workers did not do what they were asked, so that nobody knows which spec acts."""


class VllmReload:
    """One reload at a time; `under_way` tells how many requests the gate has let in that have not ended."""

    def __init__(self, settings: Settings, under_way: Callable[[], int]) -> None:
        self._settings = settings
        self._under_way = under_way
        self._at_it = False
        self.testing = asyncio.Lock()
        """Held while the workers test themselves or exchange: half-way, a self-test would find the wrong numbers."""
        self.closed = False
        """Whether no request may be let in."""

    def check_open(self) -> None:
        """RequestError, with when to come again, while a spec is being exchanged."""
        if self.closed:
            raise RequestError(
                503, "A new spec is taking over; try again later.", code="reloading", retry_after=RETRY_AFTER
            )

    async def reload(self, client: Any, status: GuardStatus) -> GuardStatus:
        """The state of the spec that is in the file by now, once it serves; `client` is vLLM's client of its engine.

        RequestError where it does not: 409 if the old one does, 503 if nothing is served any more.
        """
        parallel = client.vllm_config.parallel_config
        if parallel.data_parallel_size != 1 or parallel._api_process_count != 1:
            raise SEVERAL
        if self._at_it:
            raise AT_IT
        self._at_it = True
        try:
            return await self._reload(client, status)
        finally:
            self._at_it = self.closed = False

    async def _reload(self, client: Any, status: GuardStatus) -> GuardStatus:
        _check_in_force(status)
        try:
            spec = await asyncio.to_thread(load_spec, self._settings)
            await self._prepare(client, spec)
        except UnsettledError as error:
            raise _stopped(status, error) from error
        except NeuronGuardError as error:
            logger.warning("spec %s serves on: %s", status.digest[:16], error)
            raise not_reloaded(error) from error
        await self._drain()
        started = time.monotonic()
        async with self.testing:
            _check_in_force(status)
            with ExitStack() as broken_off:
                broken_off.callback(status.stop, "a reload was broken off.")
                try:
                    reason = await _exchange(client, status.digest, spec.digest)
                except UnsettledError as error:
                    raise _stopped(status, error) from error
                broken_off.pop_all()
        after = status if reason else status.succeeded_by(spec)
        after.passed(time.monotonic() - started)
        if reason:
            logger.warning("spec %s serves on: %s", status.digest[:16], reason)
            raise not_reloaded(SpecError(reason))
        logger.info("spec %s serves", after.digest[:16])
        return after

    async def _prepare(self, client: Any, spec: EditSpec) -> None:
        entry = GuardSettings(
            spec=str(self._settings.spec.resolve()),
            digest=spec.digest,
            version=version(),
            allow_refuted=self._settings.allow_refuted,
        )
        reason = await _ask_all(client, "guard_prepare", entry.model_dump())
        if reason:
            raise SpecError(reason)

    async def _drain(self) -> None:
        """Let nobody in and wait until all are out; RequestError, and nothing has changed, if that takes too long."""
        self.closed = True
        deadline = time.monotonic() + PATIENCE
        while self._under_way():
            if time.monotonic() > deadline:
                raise RequestError(
                    409,
                    f"The old spec serves on: requests under way did not end within {PATIENCE:.0f} seconds; try again.",
                    code="busy",
                )
            await asyncio.sleep(POLL)


async def _exchange(client: Any, old: str, new: str) -> str | None:
    """Why the spec with digest `old` serves on; None if the one with digest `new` does."""
    # with what nobody waits for any more ended, and the prefix cache emptied
    await ask(client.pause_generation(mode="wait", clear_cache=True), TIMEOUT)
    reason = await _ask_all(client, "guard_exchange", new)
    if reason:
        await _settle(client, "guard_exchange", old)
    await _settle(client, "guard_admit", old if reason else new, not reason)
    await ask(client.resume_generation(), TIMEOUT)
    return reason


async def _settle(client: Any, method: str, *arguments: object) -> None:
    failed = await _ask_all(client, method, *arguments)
    if failed:
        raise UnsettledError(failed)


async def _ask_all(client: Any, method: str, *arguments: object) -> str | None:
    """What the first rank that has something against it says."""
    said = await ask(client.collective_rpc(method, TIMEOUT, arguments), TIMEOUT)
    return next((reason for reason in said if reason), None)


async def ask(asked: Awaitable[Answer], seconds: float) -> Answer:
    """What vLLM's engine answers; UnsettledError where that is an error, or nothing within `seconds`."""
    task = asyncio.ensure_future(asked)
    await asyncio.wait({task}, timeout=seconds)
    # vLLM raises a bare Exception that quotes the worker's
    error = task.exception() if task.done() else TimeoutError(f"no answer in {seconds} seconds.")
    if error is not None:
        raise UnsettledError(str(error)) from error
    return task.result()


def _check_in_force(status: GuardStatus) -> None:
    reason = status.not_in_force
    if reason is not None:
        raise not_serving(reason)


def _stopped(status: GuardStatus, error: UnsettledError) -> RequestError:
    reason = f"a new spec could not take over: {error}"
    status.stop(reason)
    logger.error("%s", reason)
    return not_serving(reason)
