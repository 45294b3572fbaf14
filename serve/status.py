"""What is known of the guard while it serves: which spec, whether it is in force, when that was last shown, counts.

One object, written by the engine's thread and read by request handlers, so everything goes through a lock.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from guard.runtime.counts import Tally
from guard.spec.edit_spec import EditSpec
from serve.drift import Drift

KEPT_SELF_TESTS = 100
STARTING = "the server is starting."


class GuardStatus:
    """The state of one guard. Ready only between a self-test that passed and the first thing that fails, for good."""

    def __init__(self, spec: EditSpec, *, by_request: bool = True) -> None:
        """`by_request`: whether the engine tells what the guard did to each request, without which drift is unknown."""
        self.spec = spec
        self.digest = spec.digest
        self.verdict = spec.evidence.verdict.outcome
        self.layers = tuple(edit.layer for edit in spec.layers)
        self.trigger_layer = None if spec.trigger is None else spec.trigger.layer
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reason: str | None = STARTING
        self._stopped = False
        self._self_tests: deque[dict[str, Any]] = deque(maxlen=KEPT_SELF_TESTS)
        self.drift = Drift(spec) if by_request else None
        self.totals: Callable[[], Tally] = Tally.none
        """What the guard did since the start; may wait for the device."""

    def succeeded_by(self, spec: EditSpec) -> "GuardStatus":
        """The state of the guard after this one: the same server's, so that requests and self-tests are counted on.

        In force as this one is. What the guard does to tokens, and drift, are counted from 0: other neurons are edited.
        """
        after = GuardStatus(spec, by_request=self.drift is not None)
        with self._lock:
            after._lock, after._counts, after._self_tests = self._lock, self._counts, self._self_tests
            after._reason, after._stopped = self._reason, self._stopped
        return after

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: names the spec that guarded an answer."""
        return f"guard-{self.digest[:16]}"

    @property
    def not_in_force(self) -> str | None:
        """Why nothing may be generated; None while the guard is in force."""
        with self._lock:
            return self._reason

    def count(self, name: str, amount: int = 1) -> None:
        """Add `amount` to the counter called `name`."""
        with self._lock:
            self._counts[name] += amount

    def passed(self, seconds: float) -> None:
        """A self-test that took `seconds` has passed; serving may begin, unless it was stopped before."""
        with self._lock:
            self._counts["self_tests_passed"] += 1
            self._self_tests.append({"at": time.time(), "seconds": round(seconds, 6), "passed": True, "reason": None})
            if not self._stopped:
                self._reason = None

    def stop(self, reason: str, *, self_test: bool = False) -> None:
        """Nothing may be generated any more, because of `reason`; the first one stays. There is no way back."""
        with self._lock:
            if self_test:
                self._counts["self_tests_failed"] += 1
                self._self_tests.append({"at": time.time(), "seconds": None, "passed": False, "reason": reason})
            if not self._stopped:
                self._stopped, self._reason = True, reason

    def snapshot(self) -> dict[str, Any]:
        """Everything here as a JSON document. `at` is in seconds since 1970; `clips` are told by layer."""
        totals, drift = self.totals(), None if self.drift is None else self.drift.snapshot()
        with self._lock:
            return {
                "in_force": self._reason is None,
                "reason": self._reason,
                "spec_digest": self.digest,
                "verdict": self.verdict,
                "layers": list(self.layers),
                "trigger_layer": self.trigger_layer,
                "last_self_test": dict(self._self_tests[-1]) if self._self_tests else None,
                "self_tests": [dict(test) for test in self._self_tests],
                "counts": dict(sorted(self._counts.items())),
                "tokens": totals.tokens,
                "active_tokens": totals.active,
                "clips": {str(layer): clips for layer, clips in zip(self.layers, totals.clips, strict=False)},
                "drift": drift,
            }
