"""`neuron-guard serve` in a process of its own, as an operator starts it, and the memory that its processes hold."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from guard.errors import NeuronGuardError

PATIENCE = 900.0  # seconds until it answers; a loaded machine imports slowly
KEY_VARIABLE = "NEURON_GUARD_API_KEY"
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Server:
    """A running server, where it answers, its API key and the file that it writes to."""

    process: "subprocess.Popen[bytes]"
    url: str
    key: str
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        """What a request must come with."""
        return {"Authorization": f"Bearer {self.key}"}

    def last_words(self) -> str:
        """The end of what it has written."""
        return self.log.read_text(encoding="utf-8", errors="replace").strip()[-4000:]

    def memory(self) -> int:
        """Bytes in main memory of all of its processes together, pages that they share counted for each."""
        return sum(resident(process) for process in family(self.process.pid))


@contextmanager
def serving(
    model: Path, spec: Path, log: Path, options: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Server]:
    """A server of `model` guarded with `spec`, once it is healthy; its whole family of processes ends with the block.

    `options` are those of `neuron-guard serve`; NeuronGuardError, with its last words, where it does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "neuron_guard", "serve", str(model), "--spec", str(spec), "--port", port]
    key = secrets.token_hex()
    with (
        log.open("wb") as written,
        subprocess.Popen(  # noqa: S603 (this program itself)
            [*command, *options],
            env={**os.environ, **QUIET, KEY_VARIABLE: key, **environment},
            stdout=written,
            stderr=written,
            start_new_session=True,
        ) as process,
    ):
        server = Server(process, f"http://127.0.0.1:{port}", key, log)
        try:
            until_healthy(server)
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def until_healthy(server: Server) -> None:
    """Wait until `server` has shown that it guards; NeuronGuardError if it ends or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health").status_code == 200:
                return
        time.sleep(0.1)
    raise NeuronGuardError(f"the server did not start: {server.last_words()}")


def family(process: int) -> list[int]:
    """A process and its descendants that are still there."""
    children = [child for task in Path(f"/proc/{process}/task").glob("*/children") for child in _read(task).split()]
    return [process, *(number for child in children for number in family(int(child)))]


def resident(process: int) -> int:
    """Bytes of a process in main memory; 0 once it has ended."""
    _, pages, *_ = (_read(Path(f"/proc/{process}/statm")) or "0 0").split()
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _read(file: Path) -> str:
    """A file's contents; none where it is gone, as processes come and go."""
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
