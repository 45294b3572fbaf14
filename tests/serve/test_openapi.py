"""Requests made up from the served OpenAPI document, valid and not: none of them is a mistake of the server's."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples

from serve.http.app import create_app
from tests.serve.served import MODEL, engine_of, organism_spec, settings

pytestmark = pytest.mark.fuzz
PATIENCE = 300  # seconds; a loaded machine is no mistake
BODIES = {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"}


@pytest.fixture
def operations() -> Iterator[list[Any]]:
    """Every route of a server of the organism; a new one for each test, as schemathesis shuts it down at the end."""
    schemathesis = pytest.importorskip("schemathesis")

    with engine_of(organism_spec(), max_context=64) as engine:
        schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(engine, settings()))
        yield [result.ok() for result in schema.get_all_operations()]


def statuses(operation: Any, mode: str, count: int = 30, **call: Any) -> Counter[int]:
    """How often each status was the answer to `count` requests made up for `operation`, half of them for our model."""
    schemathesis = pytest.importorskip("schemathesis")

    seen: Counter[int] = Counter()

    @examples(
        max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    def ask(case: Any) -> None:
        seen[case.call(timeout=PATIENCE, **call).status_code] += 1
        if isinstance(case.body, dict):
            case.body["model"] = MODEL
            seen[case.call(timeout=PATIENCE, **call).status_code] += 1

    ask()
    return seen


def test_every_route_is_described(operations: list[Any]) -> None:
    assert {operation.path for operation in operations} >= BODIES | {"/guard", "/health", "/v1/models"}


def test_requests_as_described_are_served_or_refused(operations: list[Any]) -> None:
    seen = {operation.path: statuses(operation, "POSITIVE") for operation in operations}
    assert not [path for path, counts in seen.items() if max(counts) >= 500]
    assert all(seen[path][200] for path in BODIES), "nothing was answered: the test shows nothing"


def test_requests_that_are_not_as_described_are_refused(operations: list[Any]) -> None:
    for operation in operations:
        if operation.path in BODIES:
            assert max(statuses(operation, "NEGATIVE")) < 500
