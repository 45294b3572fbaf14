"""From the engine's thread to the coroutine: nothing is lost, nothing blocks, what nobody reads is dropped."""

import asyncio
import threading

from serve.hf.ticket import Ticket
from serve.http.errors import RequestError, failed
from serve.job import Piece


def test_pieces_arrive_in_order_from_another_thread() -> None:
    async def read() -> list[tuple[int, str]]:
        ticket = Ticket(2)

        def write() -> None:
            for count in range(100):
                for index in range(2):
                    ticket.put(index, Piece(str(count), count, finish="stop" if count == 99 else None))

        threading.Thread(target=write).start()
        return [(index, piece.text) async for index, piece in ticket]

    arrived = asyncio.run(read())
    for index in range(2):
        assert [text for one, text in arrived if one == index] == [str(count) for count in range(100)]


def test_an_error_comes_after_what_was_handed_over_before_it() -> None:
    async def read() -> list[str]:
        ticket, texts = Ticket(1), []
        ticket.put(0, Piece("a", 1))
        ticket.fail(failed("first"))
        ticket.fail(failed("second"))
        ticket.put(0, Piece("b", 2))
        try:
            async for _, piece in ticket:
                texts.append(piece.text)
        except RequestError as error:
            texts.append(str(error))
        return texts

    assert asyncio.run(read()) == ["a", "first"]


def test_a_finished_answer_is_not_spoilt_by_a_later_error() -> None:
    async def read() -> list[str]:
        ticket = Ticket(1)
        ticket.put(0, Piece("a", 1, finish="stop"))
        ticket.fail(failed("too late"))
        return [piece.text async for _, piece in ticket]

    assert asyncio.run(read()) == ["a"]


def test_a_cancelled_ticket_keeps_nothing() -> None:
    async def leave() -> Ticket:
        ticket = Ticket(1)
        ticket.put(0, Piece("a", 1))
        ticket.cancel()
        ticket.put(0, Piece("b", 2))
        return ticket

    ticket = asyncio.run(leave())
    assert ticket.cancelled
    assert not ticket._pieces


def test_a_loop_that_has_ended_troubles_no_engine() -> None:
    async def make() -> Ticket:
        return Ticket(1)

    ticket = asyncio.run(make())
    ticket.put(0, Piece("a", 1))
    ticket.fail(failed("nobody reads it"))
