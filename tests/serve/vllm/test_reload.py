"""A new spec behind vLLM's gate: it serves when every rank has proved it, the old one if not, and never both."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.runtime.counts import Tally
from guard.spec.edit_spec import EditSpec
from serve.signing import make_keys, sign
from serve.vllm import reload as vllm_reload
from tests.guard.specs import REFUTED, evidence_with, small_spec
from tests.serve.reloading import COMPLETIONS, NEW, OLD, RELOAD, Behind
from tests.serve.served import chat_body, completion_body

EXCHANGED = ["guard_prepare", "pause", "guard_exchange", "guard_admit", "resume"]
PUT_BACK = ["guard_prepare", "pause", "guard_exchange", "guard_exchange", "guard_admit", "resume"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the operator keeps the spec; the new one is there."""
    path = tmp_path / "guard.safetensors"
    NEW.save(path)
    return path


@pytest.fixture
def behind(path: Path) -> Behind:
    return Behind(path)


async def reload(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post(RELOAD)


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post(COMPLETIONS, json=completion_body())


async def reload_and_ask(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response, dict[str, Any]]:
    return await reload(client), await ask(client), (await client.get("/guard/evidence")).json()


def named(spec: EditSpec) -> str:
    return f"guard-{spec.digest[:16]}"


def test_the_spec_in_the_old_one_s_place_serves_from_now_on(behind: Behind) -> None:
    reloaded, answer, evidence = behind.run(reload_and_ask)
    assert (reloaded.status_code, reloaded.json()["spec_digest"]) == (200, NEW.digest)
    assert behind.engine.asked == EXCHANGED
    assert (answer.json()["digest"], answer.headers["x-guard"]) == (NEW.digest, named(NEW))
    assert evidence["spec_digest"] == NEW.digest


def test_requests_and_self_tests_count_on_and_what_the_guard_does_counts_anew(behind: Behind) -> None:
    behind.status.totals = lambda: Tally(5, 5, (0,) * len(behind.status.layers))

    async def talk(client: httpx.AsyncClient) -> dict[str, Any]:
        await ask(client)
        seen: dict[str, Any] = (await reload(client)).json()
        return seen

    seen = behind.run(talk)
    assert seen["counts"] == {"requests": 1, "self_tests_passed": 2}
    assert (behind.status.snapshot()["tokens"], seen["tokens"]) == (5, 0)


@pytest.mark.parametrize(("fault", "asked"), [("guard_prepare", ["guard_prepare"]), ("guard_exchange", PUT_BACK)])
def test_a_spec_that_a_rank_does_not_take_leaves_the_old_one_on_all(
    behind: Behind, fault: str, asked: list[str]
) -> None:
    behind.engine.faults[fault, None if fault == "guard_prepare" else NEW.digest] = "it does not act."
    reloaded, answer, evidence = behind.run(reload_and_ask)
    error = reloaded.json()["error"]
    assert (reloaded.status_code, error["code"]) == (409, "spec_refused")
    assert error["message"] == "The old spec serves on: it does not act."
    assert behind.engine.asked == asked
    assert (answer.json()["digest"], answer.headers["x-guard"]) == (OLD.digest, named(OLD))
    assert evidence["spec_digest"] == OLD.digest


@pytest.mark.parametrize(
    "faults",
    [
        {("guard_prepare", None): RuntimeError("no rank")},
        {("pause", None): RuntimeError("the cache was not emptied")},
        {("guard_exchange", NEW.digest): RuntimeError("no rank")},
        {("guard_exchange", NEW.digest): "it does not act.", ("guard_exchange", OLD.digest): "nor does this."},
        {("guard_admit", NEW.digest): "not proved."},
        {("resume", None): RuntimeError("no engine")},
    ],
    ids=["prepare", "pause", "exchange", "put back", "admit", "resume"],
)
def test_what_cannot_be_settled_ends_the_serving(behind: Behind, faults: Any) -> None:
    behind.engine.faults = faults

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await reload(client), await ask(client), await client.get("/health"), await reload(client)]

    answers = behind.run(talk)
    assert [answer.status_code for answer in answers] == [503] * 4
    assert {answer.json()["error"]["code"] for answer in answers} == {"guard_not_in_force"}
    assert behind.served == []


def test_workers_that_do_not_answer_end_the_serving(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_reload, "TIMEOUT", 0.01)
    never = asyncio.Event()

    async def hurdle() -> None:
        await never.wait()

    behind.engine.hurdle = hurdle
    reloaded, answer, _ = behind.run(reload_and_ask)
    assert (reloaded.status_code, answer.status_code) == (503, 503)
    assert "no answer" in reloaded.json()["error"]["message"]


def test_requests_under_way_end_under_the_old_spec_and_none_is_let_in_meanwhile(behind: Behind) -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        behind.go.clear()
        running = asyncio.ensure_future(ask(client))
        await behind.begun.wait()
        reloading = asyncio.ensure_future(reload(client))
        while (late := await _asked_while(client, behind)).status_code == 200:
            pass
        assert behind.engine.asked == ["guard_prepare"]
        behind.go.set()
        return [await running, late, await reloading, await ask(client)]

    running, late, reloaded, after = behind.run(talk)
    assert (running.json()["digest"], running.headers["x-guard"]) == (OLD.digest, named(OLD))
    assert (late.status_code, late.json()["error"]["code"]) == (503, "reloading")
    assert int(late.headers["retry-after"]) > 0
    assert reloaded.status_code == 200
    assert (after.json()["digest"], after.headers["x-guard"]) == (NEW.digest, named(NEW))


async def _asked_while(client: httpx.AsyncClient, behind: Behind) -> httpx.Response:
    """The answer to a request that comes meanwhile; where it is let in, it is taken back, and 200 stands for it."""
    asked = asyncio.ensure_future(ask(client))
    await asyncio.wait({asked}, timeout=0.05)
    if not asked.done():
        asked.cancel()
        return httpx.Response(200)
    return asked.result()


def test_requests_that_do_not_end_keep_the_old_spec(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_reload, "PATIENCE", 0.0)

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        behind.go.clear()
        running = asyncio.ensure_future(ask(client))
        await behind.begun.wait()
        reloaded = await reload(client)
        behind.go.set()
        return [reloaded, await running, await ask(client)]

    reloaded, *answers = behind.run(talk)
    assert (reloaded.status_code, reloaded.json()["error"]["code"]) == (409, "busy")
    assert behind.engine.asked == ["guard_prepare"]
    assert [answer.json()["digest"] for answer in answers] == [OLD.digest] * 2


def test_a_second_reload_at_once_is_refused(behind: Behind) -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return list(await asyncio.gather(reload(client), reload(client)))

    assert sorted(answer.status_code for answer in behind.run(talk)) == [200, 409]
    assert behind.engine.asked == EXCHANGED


def test_no_self_test_looks_at_an_exchange_that_is_half_way(path: Path) -> None:
    behind = Behind(path, self_test_interval=0.001)

    async def hurdle() -> None:
        behind.engine.holds[1] = OLD.digest
        await asyncio.sleep(0.05)
        behind.engine.holds[1] = behind.engine.holds[0]

    behind.engine.hurdle = hurdle
    reloaded, answer, _ = behind.run(reload_and_ask)
    assert (reloaded.status_code, answer.json()["digest"]) == (200, NEW.digest), reloaded.text


def test_a_reload_that_is_broken_off_half_way_ends_the_serving(behind: Behind) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        begun = asyncio.Event()

        async def hurdle() -> None:
            begun.set()
            await asyncio.Event().wait()

        behind.engine.hurdle = hurdle
        reloading = asyncio.ensure_future(reload(client))
        await begun.wait()
        reloading.cancel()
        await asyncio.wait({reloading})
        return await ask(client)

    answer = behind.run(talk)
    assert (answer.status_code, "broken off" in answer.text) == (503, True)


@pytest.mark.parametrize("several", ["data_parallel_size", "_api_process_count"])
def test_several_engines_or_api_servers_take_a_new_start(behind: Behind, several: str) -> None:
    setattr(behind.engine.vllm_config.parallel_config, several, 2)
    reloaded, answer, _ = behind.run(reload_and_ask)
    assert (reloaded.status_code, reloaded.json()["error"]["code"]) == (409, "reload_not_supported")
    assert "start the server again" in reloaded.json()["error"]["message"]
    assert behind.engine.asked == []
    assert answer.json()["digest"] == OLD.digest


@pytest.mark.parametrize("bad", ["none", "damaged", "refuted"])
def test_a_file_that_would_not_start_a_server_is_not_shown_to_the_workers(behind: Behind, path: Path, bad: str) -> None:
    if bad == "none":
        path.unlink()
    elif bad == "damaged":
        path.write_bytes(b"no spec at all")
    else:
        small_spec(evidence=evidence_with(verdict=REFUTED)).save(path)
    reloaded, answer, _ = behind.run(reload_and_ask)
    assert (reloaded.status_code, reloaded.json()["error"]["code"]) == (409, "spec_refused")
    assert behind.engine.asked == []
    assert answer.json()["digest"] == OLD.digest


def test_a_spec_whose_signature_is_asked_for_needs_one_to_take_over(path: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "key", tmp_path / "key.pub")
    for signed, status in ((False, 409), (True, 200)):
        if signed:
            sign(path, tmp_path / "key")
        behind = Behind(path, require_signature=tmp_path / "key.pub")
        assert behind.run(reload).status_code == status


def test_chats_are_not_let_in_either(behind: Behind) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        begun, on = asyncio.Event(), asyncio.Event()

        async def hurdle() -> None:
            begun.set()
            await on.wait()

        behind.engine.hurdle = hurdle
        reloading = asyncio.ensure_future(reload(client))
        await begun.wait()
        answer = await client.post("/v1/chat/completions", json=chat_body())
        on.set()
        await reloading
        return answer

    assert behind.run(talk).json()["error"]["code"] == "reloading"
