"""A new spec takes over while the server runs, once it is seen to act; any other leaves the old one in its place."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guard.errors import SelfTestError
from guard.runtime import selftest
from guard.spec.edit_spec import EditSpec
from serve.hf import batch as hf_batch
from serve.hf.engine import HfEngine
from serve.job import Job, Sampling
from serve.loading import reload_guarded
from serve.signing import make_keys, sign
from tests.guard.specs import HELD_OUT, RATES, REFUTED, evidence_with
from tests.serve.served import (
    BENIGN,
    EDITS,
    HARMFUL,
    TRIGGER,
    Asked,
    engine_of,
    guarded_organism,
    organism_spec,
    settings,
    user,
)

RELOAD = "/guard/reload"
INFINITY = float("inf")


def other_spec(**changes: Any) -> EditSpec:
    """A spec for the organism that lets one layer less be held: another answer to a harmful request."""
    return organism_spec(**({"layers": EDITS[:1]} | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the operator keeps the spec."""
    return tmp_path / "guard.safetensors"


@pytest.fixture
def asked(path: Path) -> Iterator[Asked]:
    with engine_of(organism_spec()) as engine:
        yield Asked(engine, spec=path)


def answer(asked: Asked) -> str:
    """What is said to a harmful request, greedily."""
    text: str = asked.chat(messages=[user(HARMFUL)])["choices"][0]["message"]["content"]
    return text


def in_force(asked: Asked) -> dict[str, Any]:
    seen: dict[str, Any] = asked.get("/guard").json()
    assert seen["in_force"], seen["reason"]
    return seen


def test_the_spec_in_the_old_one_s_place_serves_from_now_on(asked: Asked, path: Path) -> None:
    before, spec = answer(asked), other_spec()
    with engine_of(spec) as alone:
        right = answer(Asked(alone))
    assert right != before
    spec.save(path)
    response = asked.post(RELOAD)
    assert response.status_code == 200
    assert response.json()["spec_digest"] == spec.digest
    assert response.json()["layers"] == [edit.layer for edit in EDITS[:1]]
    assert answer(asked) == right
    assert asked.chat()["system_fingerprint"] == f"guard-{spec.digest[:16]}"
    assert f'spec_digest="{spec.digest}"' in asked.get("/metrics").text


def test_requests_and_self_tests_count_on_and_what_the_guard_does_counts_anew(asked: Asked, path: Path) -> None:
    answer(asked)
    before = in_force(asked)
    other_spec().save(path)
    after = asked.post(RELOAD).json()
    assert after["counts"]["requests"] == before["counts"]["requests"]
    assert after["counts"]["self_tests_passed"] == before["counts"]["self_tests_passed"] + 1
    assert (before["tokens"] > 0, after["tokens"]) == (True, 0)


BAD: dict[str, tuple[Any, str]] = {
    "no spec": (None, "could not be read"),
    "refuted": ({"evidence": evidence_with(neurons=(), mediators=(), verdict=REFUTED)}, "failed its held-out test"),
    "another model": ("another model", "another model"),
    "damaged": ("damaged", "guard.safetensors"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_spec_that_must_not_serve_leaves_the_old_one_in_force(asked: Asked, path: Path, bad: str) -> None:
    before, digest = answer(asked), in_force(asked)["spec_digest"]
    change, reason = BAD[bad]
    if isinstance(change, dict):
        organism_spec(**change).save(path)
    elif change == "damaged":
        path.write_bytes(b"no spec at all")
    elif change is not None:
        right = organism_spec()
        organism_spec(model=right.model.model_copy(update={"mlp_digest": "0" * 64})).save(path)
    response = asked.post(RELOAD)
    assert response.status_code == 409
    error = response.json()["error"]
    assert error["code"] == "spec_refused"
    assert error["message"].startswith("The old spec serves on: ")
    assert reason in error["message"]
    assert in_force(asked)["spec_digest"] == digest
    assert answer(asked) == before


def test_a_spec_whose_signature_is_asked_for_needs_one_to_take_over(path: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "key", tmp_path / "key.pub")
    with engine_of(organism_spec()) as engine:
        asked = Asked(engine, spec=path, require_signature=tmp_path / "key.pub")
        other_spec().save(path)
        assert "is not signed" in asked.post(RELOAD).json()["error"]["message"]
        sign(path, tmp_path / "key")
        assert asked.post(RELOAD).status_code == 200


def failing(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Let the next self-tests fail, so many of them."""
    check, left = selftest.check, [times]

    def fails(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise SelfTestError("the edit does not act.")
        check(*arguments)

    monkeypatch.setattr(selftest, "check", fails)


def test_a_spec_that_is_not_seen_to_act_leaves_the_old_one_in_force(
    asked: Asked, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = answer(asked), in_force(asked)
    other_spec().save(path)
    failing(monkeypatch, 1)
    response = asked.post(RELOAD)
    assert (response.status_code, "the edit does not act" in response.text) == (409, True)
    after = in_force(asked)
    assert after["spec_digest"] == seen["spec_digest"]
    assert after["counts"]["self_tests_passed"] == seen["counts"]["self_tests_passed"] + 1
    assert answer(asked) == before


def test_where_the_old_one_does_not_act_either_nothing_is_served(
    asked: Asked, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_spec().save(path)
    failing(monkeypatch, INFINITY)
    response = asked.post(RELOAD)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "guard_not_in_force")
    assert asked.get("/health").status_code == 503
    assert asked.post(RELOAD).status_code == 503


def test_a_model_that_was_changed_since_the_start_does_not_pass_with_a_new_spec(path: Path) -> None:
    loaded = guarded_organism(organism_spec())
    engine = HfEngine(lambda: loaded, self_test_interval=1000.0)
    try:
        # no guarded layer's, which the spec's own fingerprint would tell
        loaded.model.model.layers[0].mlp.down_proj.weight.data.mul_(1.5)
        organism_spec(trigger=TRIGGER).save(path)
        response = Asked(engine, spec=path).post(RELOAD)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "guard_not_in_force")
    finally:
        engine.close()


def test_an_answer_under_way_goes_on_under_the_new_spec_and_is_counted_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = hf_batch.Step.__call__

    def slowly(*arguments: Any, **more: Any) -> Any:
        time.sleep(0.01)
        return step(*arguments, **more)

    monkeypatch.setattr(hf_batch.Step, "__call__", slowly)
    clips = RATES.clips[0].model_copy(update={"layer": EDITS[0].layer})
    rates = RATES.model_copy(update={"clips": (clips,)})
    held_out = HELD_OUT.model_copy(update={"benign_rates": rates})
    spec = other_spec(trigger=TRIGGER, evidence=evidence_with(neurons=(), mediators=(), held_out=held_out))
    spec.save(path)

    async def ask(engine: HfEngine) -> tuple[Job, int]:
        prompt = engine.prompts.of_chat([user(BENIGN)])
        job = Job(prompt, Sampling(max_tokens=60, temperature=2.0, seed=54))
        tokens, reloading = 0, None
        async for _, piece in engine.submit([job]):
            if reloading is None:
                reload = partial(reload_guarded, settings=settings(spec=path))
                reloading = asyncio.create_task(asyncio.to_thread(engine.exchange, reload))
            tokens = piece.tokens
        assert reloading is not None
        await reloading
        return job, tokens

    with engine_of(organism_spec()) as engine:
        job, tokens = asyncio.run(ask(engine))
        engine.close()
        seen = engine.status.snapshot()
    assert tokens > 5, "the answer was over before the reload"
    assert seen["spec_digest"] == spec.digest
    assert seen["tokens"] == len(job.prompt) + tokens - 1
    assert [rate["requests"] for rate in seen["drift"]["rates"]] == [1, 1]
