"""What the modules of tests share: one served organism each, and every metric there is."""

from collections.abc import Iterator

import pytest

from guard.runtime.counts import Tally
from serve.metrics import registry_of, render
from serve.status import GuardStatus
from tests.guard.specs import HELD_OUT, RATES, evidence_with, small_spec
from tests.serve.served import Asked, engine_of, organism_spec
from tests.serve.test_metrics import Samples, parsed


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    """Asks a server whose model is the guarded organism."""
    with engine_of(organism_spec()) as engine:
        yield Asked(engine)


@pytest.fixture(scope="module")
def exported() -> Samples:
    """Every metric of a server that has done something of everything."""
    held_out = HELD_OUT.model_copy(update={"benign_rates": RATES})
    status = GuardStatus(small_spec(evidence=evidence_with(held_out=held_out)))
    status.passed(0.1)
    assert status.drift is not None
    status.drift.observe(Tally(3, 1, (1, 1)))
    return parsed(render(registry_of(lambda: status, "model")).decode())
