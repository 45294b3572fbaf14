"""What Prometheus reads at GET /metrics: the guard's state, counts and drift, looked up when it asks and not before.

Nothing is kept here: the numbers are GuardStatus's, so that /guard, the page and this cannot disagree. The registry is
the application's own, so that two applications in one process do not mix.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from guard.spec.edit_spec import EditSpec
from serve.status import GuardStatus

REQUEST_COUNTS = {
    "requests": "Requests accepted.",
    "sequences": "Answers asked for; a request can ask for several.",
    "requests_refused_for_load": "Requests sent away because too many waited.",
    "prompt_tokens": "Tokens of prompts taken up.",
    "generated_tokens": "Tokens generated.",
}


class GuardCollector(Collector):
    """The metrics of one server, whose spec may change; `name` is what clients call the model."""

    def __init__(self, status: Callable[[], GuardStatus], name: str) -> None:
        self._status = status
        self._name = name

    def collect(self) -> Iterator[Metric]:
        """Every metric, as things are now."""
        status = self._status()
        seen = status.snapshot()
        yield InfoMetricFamily(
            "guard",
            "What serves: the spec's digest and verdict, the model, the version.",
            {
                "spec_digest": seen["spec_digest"],
                "verdict": seen["verdict"],
                "model": self._name,
                "version": version("neuron-guard"),
            },
        )
        yield _gauge("guard_in_force", "1 while the guard is in force, 0 when nothing is generated.", seen["in_force"])
        yield from self._acts(seen, status.spec)
        yield from self._self_tests(seen)
        if seen["drift"] is not None:
            yield from self._drift(seen["drift"])
        for name, described in REQUEST_COUNTS.items():
            yield _counter(f"guard_{name}", described, seen["counts"].get(name, 0))

    def _acts(self, seen: dict[str, Any], spec: EditSpec) -> Iterator[Metric]:
        yield _counter("guard_tokens", "Tokens that passed through the guarded layers.", seen["tokens"])
        yield _counter("guard_active_tokens", "Of these, tokens with an active trigger.", seen["active_tokens"])
        clips = CounterMetricFamily("guard_clips", "Values of edited neurons that the edit changed.", labels=["layer"])
        edited = GaugeMetricFamily("guard_edited_neurons", "Neurons that the edit holds.", labels=["layer"])
        for edit in spec.layers:
            layer = str(edit.layer)
            clips.add_metric([layer], seen["clips"].get(layer, 0))
            edited.add_metric([layer], len(edit.neurons))
        yield clips
        yield edited

    def _self_tests(self, seen: dict[str, Any]) -> Iterator[Metric]:
        tests = CounterMetricFamily("guard_self_tests", "Proofs that the guard acts.", labels=["result"])
        for result in ("passed", "failed"):
            tests.add_metric([result], seen["counts"].get(f"self_tests_{result}", 0))
        yield tests
        last = seen["last_self_test"]
        if last is not None:
            yield _gauge("guard_last_self_test_timestamp_seconds", "When the last one ended.", last["at"])
            if last["seconds"] is not None:
                yield _gauge("guard_last_self_test_seconds", "How long the last one took.", last["seconds"])

    def _drift(self, drift: dict[str, Any]) -> Iterator[Metric]:
        yield _gauge("guard_drift", "1 once live traffic has left what the spec's evidence recorded.", drift["alarm"])
        yield _gauge("guard_drift_false_alarm", "Chance of ever seeing it without a change.", drift["false_alarm"])
        families: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
            "guard_drift_evidence": ("From 0 to 1, where guard_drift follows.", lambda rate: rate["evidence"]),
            "guard_rate": ("Mean of the rate over finished requests.", lambda rate: rate["mean"]),
            "guard_rate_expected": ("What the evidence recorded on benign requests.", lambda rate: rate["expected"]),
            "guard_rate_expected_low": ("Its interval's lower end.", lambda rate: rate["low"]),
            "guard_rate_expected_high": ("Its interval's upper end.", lambda rate: rate["high"]),
        }
        for name, (described, value) in families.items():
            family = GaugeMetricFamily(name, described, labels=["rate"])
            for rate in drift["rates"]:
                if value(rate) is not None:
                    family.add_metric([rate["name"]], value(rate))
            yield family


def registry_of(status: Callable[[], GuardStatus], name: str) -> CollectorRegistry:
    """A registry with the metrics of one server."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(status, name))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The metrics in Prometheus's text format."""
    return generate_latest(registry)


def _gauge(name: str, described: str, value: float) -> Metric:
    return GaugeMetricFamily(name, described, float(value))


def _counter(name: str, described: str, value: float) -> Metric:
    return CounterMetricFamily(name, described, value)
