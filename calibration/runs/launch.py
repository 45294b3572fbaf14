"""How the processes of one calibration are started and kept in step; what they share is in `processes.py`."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate.utils import broadcast_object_list
from pydantic import BaseModel

from calibration.runs.processes import COUNT, Shared, is_first, joined
from calibration.runs.store import Keep
from guard.errors import NeuronGuardError

Result = TypeVar("Result", bound=BaseModel)


class ProcessError(NeuronGuardError):
    """Processes of one calibration that cannot work together."""


def in_step(keep: Keep) -> Keep:
    """`keep` for a stage that may be shared: every process gets the result that the first has, kept or computed.

    What a stage that the first computes alone keeps on its way is the first's own.
    """
    if joined() is None:
        return keep
    on_the_way = False

    def stage(name: str, kind: type[Result], compute: Callable[[], Result]) -> Result:
        if on_the_way:
            return keep(name, kind, compute)
        shared = isinstance(compute, Shared)
        if not is_first():
            if shared and _told(None) == "compute":
                compute()
            return kind.model_validate_json(_told(""))
        begun: list[bool] = []

        def begin() -> Result:
            nonlocal on_the_way
            begun.append(True)
            if shared:
                _told("compute")
                return compute()
            on_the_way = True
            try:
                return compute()
            finally:
                on_the_way = False

        result = keep(name, kind, begin)
        if shared and not begun:
            _told("kept")
        _told(result.model_dump_json())
        return result

    return stage


def _told(word: str | None) -> str:
    """What the first process says, in all of them."""
    said = [word]
    broadcast_object_list(said)
    return str(said[0])


@contextmanager
def launched(count: int) -> Iterator[None]:
    """Within the block this is the first of `count` processes on this machine, all running the same command.

    ProcessError where one of the others ends early, or a launcher has started another number of them already.
    """
    started = int(os.environ.get(COUNT, "1"))
    if count < 2 or started == count:
        yield
        return
    if started > 1:
        raise ProcessError(f"a launcher has started {started} processes already: leave --processes away.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {COUNT: str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "neuron_guard", *sys.argv[1:]]
    others = [
        subprocess.Popen(  # noqa: S603 - the very command that is running
            command,
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(1, count)
    ]
    os.environ.update(world | {"RANK": "0", "LOCAL_RANK": "0"})
    try:
        yield
    except RuntimeError as error:
        said = [other.communicate()[1] for other in others if other.poll()]
        if not said:
            raise
        last = said[0].decode(errors="replace").strip().rpartition("\n")[2]
        raise ProcessError(f"one of the processes ended early: {last}") from error
    finally:
        for other in others:
            other.terminate()
        for name in (*world, "RANK", "LOCAL_RANK"):
            del os.environ[name]
