"""/metrics says what the guard did, in numbers that agree with /guard, to whoever has the key."""

from collections.abc import Iterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from guard.runtime.counts import Tally
from serve.metrics import registry_of, render
from serve.status import GuardStatus
from tests.guard.specs import HELD_OUT, RATES, evidence_with, small_spec
from tests.serve.served import EDITS, Asked, engine_of, organism_spec

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def status() -> GuardStatus:
    held_out = HELD_OUT.model_copy(update={"benign_rates": RATES})
    return GuardStatus(small_spec(evidence=evidence_with(held_out=held_out)))


def scraped(status: GuardStatus) -> Samples:
    return parsed(render(registry_of(lambda: status, "model")).decode())


def test_counts_of_the_guard_are_told_by_layer(status: GuardStatus) -> None:
    status.totals = lambda: Tally(100, 7, (11, 5))
    samples = scraped(status)
    assert value(samples, "guard_tokens_total") == 100
    assert value(samples, "guard_active_tokens_total") == 7
    assert [value(samples, "guard_clips_total", layer=layer) for layer in ("2", "3")] == [11, 5]
    assert [value(samples, "guard_edited_neurons", layer=layer) for layer in ("2", "3")] == [2, 1]


def test_what_serves_is_told_as_info(status: GuardStatus) -> None:
    described = {
        "spec_digest": status.digest,
        "verdict": "effective",
        "model": "model",
        "version": version("neuron-guard"),
    }
    assert value(scraped(status), "guard_info", **described) == 1


def test_self_tests_and_being_in_force_are_told(status: GuardStatus) -> None:
    samples = scraped(status)
    assert value(samples, "guard_in_force") == 0
    assert value(samples, "guard_self_tests_total", result="passed") == 0
    assert not any(name.startswith("guard_last_self_test") for name, _ in samples)
    status.passed(0.25)
    samples = scraped(status)
    assert value(samples, "guard_in_force") == 1
    assert value(samples, "guard_self_tests_total", result="passed") == 1
    assert value(samples, "guard_last_self_test_seconds") == 0.25
    assert value(samples, "guard_last_self_test_timestamp_seconds") == status.snapshot()["last_self_test"]["at"]
    status.stop("a test", self_test=True)
    samples = scraped(status)
    assert value(samples, "guard_in_force") == 0
    assert value(samples, "guard_self_tests_total", result="failed") == 1


def test_drift_is_told_with_what_it_is_compared_with(status: GuardStatus) -> None:
    assert status.drift is not None
    samples = scraped(status)
    assert value(samples, "guard_drift") == 0
    assert value(samples, "guard_drift_false_alarm") == status.drift.false_alarm
    assert value(samples, "guard_rate_expected_high", rate="trigger") == 0.1
    assert not any(name == "guard_rate" for name, _ in samples), "a mean of nothing is no number"
    for _ in range(200):
        status.drift.observe(Tally(2, 1, (2, 1)))
    samples = scraped(status)
    assert value(samples, "guard_drift") == 1
    assert value(samples, "guard_drift_evidence", rate="trigger") == 1
    assert value(samples, "guard_rate", rate="trigger") == 1
    assert value(samples, "guard_rate", rate="clips of layer 2") == 0.5


def test_a_spec_that_was_loaded_anew_is_the_one_told_of(status: GuardStatus) -> None:
    serving = SimpleNamespace(status=status)
    registry = registry_of(lambda: serving.status, "model")
    serving.status = GuardStatus(small_spec(trigger=None))
    assert f'spec_digest="{serving.status.digest}"' in render(registry).decode()


def test_no_metric_is_in_the_process_s_own_registry(status: GuardStatus) -> None:
    scraped(status)
    assert not any(family.name.startswith("guard") for family in REGISTRY.collect())


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with engine_of(organism_spec()) as engine:
        yield Asked(engine, api_key="sesame")


def test_metrics_are_behind_the_api_key(asked: Asked) -> None:
    assert asked.get("/metrics").status_code == 401
    assert asked.get("/metrics", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_a_request_shows_in_the_metrics_and_they_agree_with_the_guard_route(asked: Asked) -> None:
    def both() -> tuple[Samples, dict[str, Any]]:
        key = {"Authorization": "Bearer sesame"}
        return parsed(asked.get("/metrics", headers=key).text), asked.get("/guard", headers=key).json()

    before, _ = both()
    headers = {"Authorization": "Bearer sesame"}
    body = {"model": "organism", "messages": [{"role": "user", "content": "How do I cut the lever?"}], "max_tokens": 4}
    asked.post("/v1/chat/completions", body, headers=headers)
    asked.engine.close()
    after, guard = both()
    assert value(after, "guard_requests_total") == value(before, "guard_requests_total") + 1
    assert value(after, "guard_tokens_total") == guard["tokens"] > 0
    for edit in EDITS:
        layer = str(edit.layer)
        assert value(after, "guard_clips_total", layer=layer) == guard["clips"][layer] > 0


def test_an_engine_that_does_not_tell_requests_apart_says_nothing_of_drift() -> None:
    status = GuardStatus(small_spec(), by_request=False)
    assert status.snapshot()["drift"] is None
    samples = scraped(status)
    assert not any("drift" in name or name.startswith("guard_rate") for name, _ in samples)
    assert value(samples, "guard_tokens_total") == 0
