"""The stopwatch: what a sample is, what a round is, and how samples become figures."""

import time

import numpy as np
import pytest
import torch

from benchmarks.common import stopwatch
from benchmarks.common.stopwatch import CudaClock, ProcessorClock, Sampler, Samples, copy_call, sample_in_rounds


class CountingClock:
    """A clock that reads what it is told: each name's own seconds, in the order of its calls."""

    def __init__(self) -> None:
        self.order: list[float] = []

    def prepare(self, call: object) -> Sampler:
        assert callable(call)
        return Sampler(lambda: call(0), 1, 0.01)

    def seconds(self, run: object, calls: int) -> float:
        assert callable(run)
        assert calls == 1
        value = float(run())
        self.order.append(value)
        return value


def taken(budget: float, *, fewest: int = 2, most: int = 1000) -> tuple[Samples[str], CountingClock]:
    clock = CountingClock()
    calls = {"one": lambda _: 1.0, "two": lambda _: 2.0}
    random = np.random.default_rng(0)
    return sample_in_rounds(clock, calls, budget=budget, fewest=fewest, most=most, random=random), clock


def test_every_round_takes_one_sample_of_each_in_an_order_of_its_own() -> None:
    samples, clock = taken(0.4)
    rounds = np.array(clock.order).reshape(-1, 2)
    assert samples.rounds == len(rounds) == 20
    assert (np.sort(rounds) == [1.0, 2.0]).all()
    assert len(np.unique(rounds, axis=0)) == 2
    assert (samples.seconds["one"] == 1.0).all()


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 2), (0.1, 5), (100.0, 30)])
def test_the_budget_decides_how_many_rounds_there_are_within_limits(budget: float, rounds: int) -> None:
    assert taken(budget, most=30)[0].rounds == rounds


def test_a_ratio_is_the_median_of_ratios_within_rounds() -> None:
    samples = Samples({"slow": np.array([2.0, 30.0, 2.0]), "fast": np.array([1.0, 10.0, 4.0])})
    assert samples.ratio("slow", "fast") == 2.0
    assert samples.quantiles("fast") == pytest.approx((1.6, 4.0, 8.8))


def test_seconds_on_a_cpu_are_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = ProcessorClock()

    def call(place: int) -> None:
        now[0] += 1e-4

    sampler = clock.prepare(call)
    assert sampler.calls == 5
    assert sampler.length == pytest.approx(5e-4)
    before = now[0]
    assert clock.seconds(sampler.run, sampler.calls) == pytest.approx(1e-4)
    assert now[0] - before == pytest.approx(5e-4)


def test_a_copy_counts_what_it_reads_and_what_it_writes() -> None:
    copy, moved = copy_call(torch.device("cpu"), 4096)
    assert moved == 2 * 4096
    result = copy(0)
    assert isinstance(result, torch.Tensor)
    assert result.nbytes == 4096


class FakeCuda:
    """What the clock asks of torch.cuda, recorded in order; every event pair reads as 6 ms."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, *_: object, **__: object) -> "FakeCuda":
        return self

    def __enter__(self) -> None:
        self.done.append("enter")

    def __exit__(self, *_: object) -> None:
        self.done.append("exit")

    def wait_stream(self, _: object) -> None:
        self.done.append("wait")

    def record(self) -> None:
        self.done.append("event")

    def synchronize(self) -> None:
        self.done.append("synchronize")

    def elapsed_time(self, _: object) -> float:
        return 6.0

    def replay(self) -> None:
        self.done.append("replay")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("Stream", "Event", "stream", "current_stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(stopwatch, "FLUSHED_BYTES", 16)
    return fake


def test_a_cuda_sample_is_one_call_between_two_events_after_the_cache_was_written_over(cuda: FakeCuda) -> None:
    clock = CudaClock(torch.device("cpu"), 1)
    clock.flushed.fill_(1)
    sampler = clock.prepare(lambda place: cuda.done.append(f"call {place}"))
    cuda.done.clear()
    clock.flushed.fill_(1)
    assert clock.seconds(sampler.run, sampler.calls) == pytest.approx(6e-3)
    assert cuda.done == ["event", "call 0", "event", "synchronize"]
    assert not clock.flushed.any()


def test_a_cuda_sample_of_several_inputs_is_one_replay_of_a_graph_that_uses_each_once(cuda: FakeCuda) -> None:
    clock = CudaClock(torch.device("cpu"), 3)
    sampler = clock.prepare(lambda place: cuda.done.append(f"call {place}"))
    captured = cuda.done[len(cuda.done) - cuda.done[::-1].index("enter") :]
    assert captured[:4] == ["call 0", "call 1", "call 2", "exit"]
    cuda.done.clear()
    assert clock.seconds(sampler.run, sampler.calls) == pytest.approx(2e-3)
    assert cuda.done == ["event", "replay", "event", "synchronize"]
