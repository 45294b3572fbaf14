"""Seconds of small tensor functions, on a CPU and on a CUDA device, so that differences between them can be believed.

All functions of one comparison are timed in rounds: each round takes one sample of every function, in an order drawn
anew, so that whatever else happens to the machine falls on all of them. Within a round they are comparable even where
the machine drifts, so ratios are medians of ratios within rounds.

On a CUDA device a sample is taken between two events on the stream. The second-level cache is emptied before each; that
write keeps the device busy while the host queues what is timed, so launches are not counted. Decoding is launched from
CUDA graphs in practice: there a sample is one replay of a graph of several calls, each on inputs of its own, so that
none finds its inputs in the cache. On a CPU a sample is as many calls as take half a millisecond, launch included, and
caches are left as they are.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Call = Callable[[int], object]  # takes the place of the input set to use
Name = TypeVar("Name", bound=Hashable)
SHORTEST_SAMPLE = 0.5e-3  # seconds on a CPU
MOST_CALLS = 500
FLUSHED_BYTES = 2**30  # twenty times the second-level cache of an H200; a quarter of a millisecond to write
WARM_UPS = 3


@dataclass(frozen=True)
class Sampler:
    """One function ready to be timed: `run` makes `calls` calls; a sample of it takes about `length` seconds."""

    run: Callable[[], object]
    calls: int
    length: float


class Clock(Protocol):
    """How seconds are read on one kind of device."""

    def prepare(self, call: Call) -> Sampler:
        """Warm `call` up and make it ready to be sampled."""

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """Seconds per call of one sample."""


class ProcessorClock:
    """Wall-clock time on the CPU."""

    def prepare(self, call: Call) -> Sampler:
        """As many calls as a sample needs to be long enough to read; `call` has run before."""
        once = max(self.seconds(lambda: call(0), 1), 1e-7)
        if once < SHORTEST_SAMPLE:  # too short to be read once
            once = min(max(self.seconds(lambda: call(0), 1), 1e-7) for _ in range(WARM_UPS))
        calls = min(max(1, math.ceil(SHORTEST_SAMPLE / once - 1e-9)), MOST_CALLS)

        def run() -> None:
            for _ in range(calls):
                call(0)

        return Sampler(run, calls, once * calls)

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """Wall-clock seconds per call."""
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) / calls


class CudaClock:
    """Time between events on the device; with `input_sets` > 1 of a graph that calls once on each input set."""

    def __init__(self, device: torch.device, input_sets: int) -> None:
        self.device, self.input_sets = device, input_sets
        self.flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
        self.aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def prepare(self, call: Call) -> Sampler:
        """Warm up; where there are several input sets on another stream, as capturing asks for, and capture."""
        if self.input_sets == 1:
            for _ in range(WARM_UPS):
                call(0)
            return self._measured(lambda: call(0), 1)
        self.aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.aside):
            for _ in range(WARM_UPS):
                call(0)
        torch.cuda.current_stream(self.device).wait_stream(self.aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for place in range(self.input_sets):
                call(place)
        return self._measured(graph.replay, self.input_sets)

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """Seconds per call on the device, its cache emptied before."""
        self.flushed.zero_()
        self.start.record()
        run()
        self.end.record()
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1000 / calls

    def _measured(self, run: Callable[[], object], calls: int) -> Sampler:
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        self.seconds(run, calls)
        return Sampler(run, calls, time.perf_counter() - started)


@dataclass(frozen=True)
class Samples(Generic[Name]):
    """Seconds per call, [rounds] for each name; entry i of every name was read in the same round."""

    seconds: Mapping[Name, NDArray[np.float64]]

    @property
    def rounds(self) -> int:
        """How many samples there are of each."""
        return len(next(iter(self.seconds.values())))

    def quantiles(self, name: Name, shares: Sequence[float] = (0.1, 0.5, 0.9)) -> tuple[float, ...]:
        """Quantiles of the seconds of `name`."""
        return tuple(float(value) for value in np.quantile(self.seconds[name], shares))

    def ratio(self, name: Name, other: Name) -> float:
        """The median over rounds of seconds of `name` over seconds of `other`."""
        return float(np.median(self.seconds[name] / self.seconds[other]))


def sample_in_rounds(
    clock: Clock,
    calls: Mapping[Name, Call],
    *,
    budget: float,
    fewest: int,
    most: int,
    random: np.random.Generator,
) -> Samples[Name]:
    """Time every function of `calls` in rounds: as many as fit into `budget` seconds, but `fewest` to `most`.

    Each has run at least once before: what compiles or loads on its first call is not timed.
    """
    samplers = {name: clock.prepare(call) for name, call in calls.items()}
    names = list(samplers)
    length = sum(sampler.length for sampler in samplers.values())
    rounds = min(max(fewest, int(budget / length)), most)
    taken: dict[Name, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for place in random.permutation(len(names)):
            sampler = samplers[names[place]]
            taken[names[place]].append(clock.seconds(sampler.run, sampler.calls))
    return Samples({name: np.array(seconds) for name, seconds in taken.items()})


def copy_call(device: torch.device, size: int) -> tuple[Call, int]:
    """A copy of `size` bytes into memory that is there already, and how many bytes it moves: read and written.

    Neither side is left unwritten: the pages of new, zeroed memory may all be one page, which stays in the cache.
    """
    source, target = (torch.ones(size // 4, dtype=torch.float32, device=device) for _ in range(2))

    def copy(_: int) -> Tensor:
        return target.copy_(source)

    return copy, 2 * 4 * source.numel()
