"""The embedded engine counts each token of each request once, however its batches were broken off, and pads never."""

import asyncio
import time
from typing import Any

import pytest

from serve.drift import TRIGGER
from serve.hf.engine import HfEngine
from serve.hf.ticket import Ticket
from serve.job import Job, Piece, Sampling
from tests.guard.specs import HELD_OUT, RATES, evidence_with
from tests.serve.served import EDITS, engine_of, organism_spec
from tests.serve.served import TRIGGER as ALWAYS_ACTIVE

SIZES = [len(edit.neurons) for edit in EDITS]


async def generated(engine: HfEngine, jobs: list[Job]) -> int:
    """How many tokens the jobs came to."""
    tokens = dict.fromkeys(range(len(jobs)), 0)
    async for index, piece in engine.submit(jobs):
        tokens[index] = piece.tokens
    return sum(tokens.values())


def jobs(engine: HfEngine, lengths: list[int], **changes: Any) -> list[Job]:
    prompt = engine.prompts.of_chat([{"role": "user", "content": "How do I cut the lever?"}])
    sampling = Sampling(**({"max_tokens": 8, "temperature": 1.0, "seed": 1} | changes))
    return [Job(prompt[-length:], sampling) for length in lengths]


def wait_for_self_tests(engine: HfEngine, more: int) -> None:
    def passed() -> int:
        count: int = engine.status.snapshot()["counts"]["self_tests_passed"]
        return count

    wanted = passed() + more
    while passed() < wanted:
        time.sleep(0.01)


def test_prompts_and_answers_count_once_without_padding() -> None:
    with engine_of(organism_spec()) as engine:
        asked = jobs(engine, [3, 9, 5])
        made = asyncio.run(generated(engine, asked))
        seen = engine.status.snapshot()
        # the last token of an answer is not passed through the model again
        assert seen["tokens"] == sum(len(job.prompt) for job in asked) + made - len(asked)
        assert seen["active_tokens"] == seen["tokens"]
        for layer, size in zip(EDITS, SIZES, strict=True):
            assert 0 < seen["clips"][str(layer.layer)] <= size * seen["tokens"]


def test_what_is_handed_over_was_counted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, Any]]] = []
    put = Ticket.put

    def looking(ticket: Ticket, index: int, piece: Piece) -> None:
        seen.append((piece.tokens, engine.status.snapshot()))
        put(ticket, index, piece)

    monkeypatch.setattr(Ticket, "put", looking)
    with engine_of(organism_spec()) as engine:
        asyncio.run(generated(engine, jobs(engine, [9])))
        assert len(seen) > 1
        for tokens, then in seen:
            assert then["tokens"] == 9 + tokens - 1
            assert (then["counts"]["prompt_tokens"], then["counts"]["generated_tokens"]) == (9, tokens)


def test_a_batch_that_is_broken_off_counts_as_if_it_had_not_been(monkeypatch: pytest.MonkeyPatch) -> None:
    totals, lengths = [], [9, 4, 7, 5, 8]
    for broken_off_after in (3, 10**6):
        monkeypatch.setattr(HfEngine, "_should_break_off", lambda *_, limit=broken_off_after: limit.__le__)
        with engine_of(organism_spec(), max_batch=2) as engine:
            made = asyncio.run(generated(engine, jobs(engine, lengths, max_tokens=12)))
            totals.append(engine._counts.totals())
            assert totals[-1].tokens == sum(lengths) + made - len(lengths)
            assert made > 3 * len(lengths), "no batch was long enough to be broken off"
    assert totals[0] == totals[1]


def test_a_prompt_that_is_scored_counts_once_with_and_without_an_answer() -> None:
    for max_tokens in (0, 6):
        with engine_of(organism_spec()) as engine:
            (job,) = jobs(engine, [7], max_tokens=max_tokens, top_logprobs=1)
            made = asyncio.run(generated(engine, [Job(job.prompt, job.sampling, score_prompt=True)]))
            assert engine.status.snapshot()["tokens"] == 7 + max(0, made - 1)


def test_self_tests_count_nothing() -> None:
    with engine_of(organism_spec(trigger=ALWAYS_ACTIVE), self_test_interval=0.01) as engine:
        asyncio.run(generated(engine, jobs(engine, [5])))
        wait_for_self_tests(engine, 2)
        before = engine.status.snapshot()
        wait_for_self_tests(engine, 3)
        after = engine.status.snapshot()
        assert after["tokens"] == before["tokens"] > 0
        assert len(after["self_tests"]) == after["counts"]["self_tests_passed"]


def test_every_finished_request_is_compared_with_the_evidence_once_whatever_its_choices() -> None:
    rates = RATES.model_copy(
        update={
            "clips": tuple(
                clips.model_copy(update={"layer": edit.layer}) for clips, edit in zip(RATES.clips, EDITS, strict=True)
            )
        }
    )
    held_out = HELD_OUT.model_copy(update={"benign_rates": rates})
    spec = organism_spec(trigger=ALWAYS_ACTIVE, evidence=evidence_with(neurons=(), mediators=(), held_out=held_out))
    with engine_of(spec) as engine:
        first = jobs(engine, [9])[0]
        again = [Job(first.prompt, first.sampling, choice) for choice in (1, 2)]
        asyncio.run(generated(engine, [first, *again]))
        asyncio.run(generated(engine, jobs(engine, [6])))
        engine.close()
        drift = engine.status.snapshot()["drift"]
        assert [rate["requests"] for rate in drift["rates"]] == [2] * (1 + len(EDITS))
        assert {rate["name"]: rate["mean"] for rate in drift["rates"]}[TRIGGER] == 1.0
        assert drift["alarm"] is False
