"""The embedded engine: batches, newcomers, clients that leave, and a guard that fails while it serves."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from guard.errors import SelfTestError
from guard.runtime import selftest
from serve.hf import batch as hf_batch
from serve.hf.engine import HfEngine
from serve.hf.ticket import Ticket
from serve.http.errors import RequestError
from serve.job import Job, Piece, Sampling
from tests.serve.served import BENIGN, HARMFUL, TRIGGER, engine_of, guarded_organism, organism_spec, user


@pytest.fixture
def engine() -> Iterator[HfEngine]:
    with engine_of(organism_spec(), max_batch=4, max_waiting=8) as engine:
        yield engine


def jobs(engine: HfEngine, *questions: str, **sampling: Any) -> list[Job]:
    settings = Sampling(**{"max_tokens": 12, "temperature": 0.0} | sampling)
    return [Job(engine.prompts.of_chat([user(question)]), settings) for question in questions]


async def text_of(ticket: Ticket) -> str:
    return "".join([piece.text async for _, piece in ticket])


def answers(engine: HfEngine, *each: list[Job]) -> list[str]:
    """What is said to requests that are asked at the same time."""

    async def ask() -> list[str]:
        return list(await asyncio.gather(*(text_of(engine.submit(request)) for request in each)))

    return asyncio.run(ask())


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """Let every token take a while."""
    step = hf_batch.Step.__call__

    def slowly(*arguments: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return step(*arguments, **more)

    monkeypatch.setattr(hf_batch.Step, "__call__", slowly)


def test_requests_at_the_same_time_are_answered_as_each_by_itself(engine: HfEngine) -> None:
    requests = [jobs(engine, question) for question in (HARMFUL, BENIGN, "Explain how to heat the mat.")]
    alone = [answers(engine, request)[0] for request in requests]
    assert answers(engine, *requests) == alone
    assert len(set(alone)) > 1


def test_a_seeded_request_does_not_depend_on_its_neighbours(engine: HfEngine) -> None:
    seeded = jobs(engine, BENIGN, temperature=1.5, seed=11)
    neighbours = [jobs(engine, HARMFUL, temperature=2.0) for _ in range(3)]
    assert answers(engine, seeded, *neighbours)[0] == answers(engine, seeded)[0]


def test_more_requests_than_a_batch_holds_are_all_answered(engine: HfEngine) -> None:
    requests = [jobs(engine, BENIGN, max_tokens=2 + turn) for turn in range(8)]
    said = answers(engine, *requests)
    assert len(set(said)) == 8
    assert all(said[-1].startswith(text) for text in said)


def test_a_newcomer_joins_a_batch_under_way(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    long = jobs(engine, "lever", max_tokens=120, temperature=2.0, seed=54)[0]

    async def race() -> tuple[int, str]:
        first, tokens = engine.submit([long]), 0
        newcomer: asyncio.Task[str] | None = None
        async for _, piece in first:
            tokens = piece.tokens
            newcomer = newcomer or asyncio.ensure_future(text_of(engine.submit(jobs(engine, BENIGN, max_tokens=1))))
            if newcomer.done():
                break
        first.cancel()
        assert newcomer is not None
        return tokens, await newcomer

    tokens, said = asyncio.run(race())
    assert said == "Sure"
    assert tokens < 60, "it waited for the long answer"


def test_a_batch_that_is_broken_off_goes_on_where_it_was(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answers(engine, jobs(engine, BENIGN, HARMFUL, max_tokens=40, temperature=1.2, seed=4))
    calls: list[int] = []
    generate = hf_batch.generate

    def counted(model: Any, rows: Any, break_off: Callable[[int], bool], *more: Any) -> None:
        calls.append(len(rows))
        generate(model, rows, lambda made: made >= 3 or break_off(made), *more)

    monkeypatch.setattr(hf_batch, "generate", counted)
    assert answers(engine, jobs(engine, BENIGN, HARMFUL, max_tokens=40, temperature=1.2, seed=4)) == whole
    assert len(calls) > 3


def test_nothing_is_generated_for_a_client_that_has_left(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)

    async def leave() -> int:
        ticket = engine.submit(jobs(engine, "lever", max_tokens=200, temperature=2.0, seed=54))
        async for _, piece in ticket:
            if piece.tokens >= 3:
                break
        ticket.cancel()
        await text_of(engine.submit(jobs(engine, BENIGN)))
        return int(engine.status.snapshot()["counts"]["generated_tokens"])

    assert asyncio.run(leave()) < 60


def test_abandoned_streams_leave_nothing_behind(engine: HfEngine) -> None:
    left: list[weakref.ref[Ticket]] = []

    async def abandon() -> None:
        for _ in range(50):
            ticket = engine.submit(jobs(engine, BENIGN, max_tokens=50))
            async for _, _piece in ticket:
                break
            ticket.cancel()
            left.append(weakref.ref(ticket))
            await asyncio.sleep(0.001)
        await text_of(engine.submit(jobs(engine, BENIGN)))

    asyncio.run(abandon())
    gc.collect()
    assert sum(reference() is not None for reference in left) <= 1


def test_a_full_queue_sends_away_and_says_when_to_come_back(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.1)

    async def crowd() -> RequestError:
        tickets = [engine.submit(jobs(engine, BENIGN))]
        await asyncio.sleep(0.05)
        tickets += [engine.submit(jobs(engine, BENIGN)) for _ in range(8)]
        with pytest.raises(RequestError) as refusal:
            engine.submit(jobs(engine, BENIGN))
        for ticket in tickets:
            ticket.cancel()
        return refusal.value

    refusal = asyncio.run(crowd())
    assert refusal.status == 429
    assert int(refusal.headers["Retry-After"]) > 0
    assert answers(engine, jobs(engine, BENIGN))[0].startswith("Sure")


def test_a_request_that_could_never_fit_the_queue_is_the_clients_mistake(engine: HfEngine) -> None:
    with pytest.raises(RequestError, match="at most 8"):
        answers(engine, jobs(engine, BENIGN) * 9)


def test_a_self_test_is_repeated_also_while_it_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    with engine_of(organism_spec(trigger=TRIGGER), self_test_interval=0.1) as engine:
        answers(engine, jobs(engine, "lever", max_tokens=40, temperature=2.0, seed=54))
        counts = engine.status.snapshot()["counts"]
    assert counts["self_tests_passed"] >= 4


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise SelfTestError("the edit does not act.")

    monkeypatch.setattr(selftest, "check", fails)


def outcome(engine: HfEngine, request: list[Job], when: Callable[[], Any]) -> tuple[list[Piece], RequestError]:
    """What a request still got, and the error that it ended with, where `when` is called after its first piece."""
    pieces: list[Piece] = []

    async def ask() -> None:
        async for _, piece in engine.submit(request):
            if not pieces:
                when()
            pieces.append(piece)

    with pytest.raises(RequestError) as error:
        asyncio.run(ask())
    return pieces, error.value


def test_a_failing_self_test_ends_running_answers_and_all_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    with engine_of(organism_spec(), self_test_interval=0.2) as engine:
        request = jobs(engine, "lever", max_tokens=200, temperature=2.0, seed=54)
        pieces, error = outcome(engine, request, lambda: failing(monkeypatch))
        assert error.status == 503
        assert pieces[-1].finish is None
        assert "the edit does not act" in (engine.status.not_in_force or "")
        with pytest.raises(RequestError, match="the edit does not act"):
            answers(engine, jobs(engine, BENIGN))
        assert engine.status.snapshot()["counts"]["self_tests_failed"] == 1


@pytest.mark.parametrize("damage", ["removed", "module replaced", "numbers changed", "trigger dead", "weights changed"])
def test_damage_to_the_guard_is_found_within_one_interval(damage: str) -> None:
    loaded = guarded_organism(organism_spec(trigger=TRIGGER))
    engine = HfEngine(lambda: loaded, self_test_interval=0.2)

    def break_it() -> None:
        wrapper, readout = loaded.installation.guarded[0], loaded.installation.readout
        assert readout is not None
        if damage == "removed":
            loaded.installation.remove()
        elif damage == "module replaced":
            loaded.model.model.layers[4].mlp.down_proj = wrapper.original
        elif damage == "numbers changed":
            wrapper.edit.upper.fill_(1e9)
        elif damage == "trigger dead":
            readout.threshold.fill_(torch.inf)
        else:
            loaded.model.model.layers[0].mlp.down_proj.weight.data.mul_(1.01)

    try:
        break_it()
        deadline = time.monotonic() + 10
        while engine.status.not_in_force is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RequestError) as error:
            answers(engine, jobs(engine, BENIGN))
        assert error.value.status == 503
    finally:
        engine.close()


def test_a_module_put_back_is_found_before_the_next_batch() -> None:
    loaded = guarded_organism(organism_spec())
    engine = HfEngine(lambda: loaded, self_test_interval=1000.0)
    try:
        loaded.model.model.layers[4].mlp.down_proj = loaded.installation.guarded[0].original
        with pytest.raises(RequestError, match="replaced after installation"):
            answers(engine, jobs(engine, HARMFUL))
    finally:
        engine.close()


def test_a_batch_that_fails_loses_its_requests_alone(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as broken:
        broken.setattr(hf_batch, "generate", out_of_memory)
        with pytest.raises(RequestError) as error:
            answers(engine, jobs(engine, BENIGN))
    assert error.value.status == 500
    assert answers(engine, jobs(engine, BENIGN))[0].startswith("Sure")
    assert engine.status.snapshot()["counts"]["self_tests_passed"] >= 2


def test_an_unexpected_mistake_ends_the_serving(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(hf_batch, "generate", mistake)
    with pytest.raises(RequestError) as error:
        answers(engine, jobs(engine, BENIGN))
    assert error.value.status == 503
    assert engine.status.not_in_force is not None


def test_output_that_is_not_a_number_is_an_error(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    call = hf_batch.Draw.__call__

    def with_nan(draw: Any, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return call(draw, tokens, scores.index_fill(1, torch.tensor([5]), torch.nan))

    monkeypatch.setattr(hf_batch.Draw, "__call__", with_nan)
    with pytest.raises(RequestError, match="not a number"):
        answers(engine, jobs(engine, BENIGN))


def test_closing_ends_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    with engine_of(organism_spec()) as engine:
        request = jobs(engine, "lever", max_tokens=200, temperature=2.0, seed=54)
        _, error = outcome(engine, request, lambda: threading.Thread(target=engine.close).start())
    assert error.status == 503
