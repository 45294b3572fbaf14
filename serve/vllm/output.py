"""Holds back what a starting vLLM and its processes write, until it answers or has failed.

All of it goes through a process that only copies, so that nothing waits for Python's lock in the server and vLLM stays
the process that was started: its id, signals and exit code are those of a plain start. While vLLM starts, a line now
and then says what it is doing. Once it answers, what was held back is written, and everything from then on as it
comes. Where it fails, one line says why, and a file keeps the rest.
"""

import os
import selectors
import signal
import socket
import tempfile
import time
from typing import NoReturn

from serve.vllm.reason import messages, reason_of

PROGRESS = 15.0  # seconds between two lines about a start under way
SHOWN = 100  # characters of vLLM's own last line in one of them
PATIENCE = 30.0  # seconds that a failed start waits for its line to be written
CHUNK = 65536  # bytes
KILLED = "it was killed before it answered."
ANSWERS, FAILED, STOPPED = b"answers", b"failed", b"stopped"


class HeldOutput:
    """This process's output, and that of the processes it starts, held back from now on. Needs a single thread."""

    _current: "HeldOutput | None" = None

    def __init__(self) -> None:
        self._control, there = socket.socketpair()
        pipes = {number: os.pipe() for number in (1, 2)}
        if os.fork() == 0:
            self._control.close()
            for _, write in pipes.values():
                os.close(write)
            _copy_and_end(_Copier({read: number for number, (read, _) in pipes.items()}, there))
        there.close()
        for number, (read, write) in pipes.items():
            os.dup2(write, number)
            os.close(read)
            os.close(write)
        HeldOutput._current = self

    def answers(self, line: str) -> None:
        """Let everything through from now on, and then `line`."""
        self._end(ANSWERS, line)

    def failed(self, error: str | None) -> None:
        """Have the one line written that says why the start failed; `error` is this process's own, as Python prints it.

        Returns once the line is there.
        """
        self._end(FAILED, error or "")

    def stopped(self) -> None:
        """The start was broken off from outside, which needs no explanation."""
        self._end(STOPPED, "")

    @classmethod
    def of_this_process(cls) -> "HeldOutput | None":
        """What is still held back, if anything is."""
        return cls._current

    def _end(self, outcome: bytes, text: str) -> None:
        HeldOutput._current = None
        with self._control as control:
            control.settimeout(PATIENCE)
            control.sendall(outcome + b" " + text.encode(errors="replace"))
            control.shutdown(socket.SHUT_WR)
            control.recv(1)  # ends when the other side has written what there is to write


class _Copier:
    """The process that copies. `sources` has the descriptor to write to for each that is read."""

    def __init__(self, sources: dict[int, int], control: socket.socket) -> None:
        self._sources = sources
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._held: list[tuple[int, bytes]] | None = []
        self._said = b""
        self._settled = False
        self._deaf: set[int] = set()

    def run(self) -> None:
        """Copy until every process that could write has ended."""
        for source in (*self._sources, self._control.fileno()):
            os.set_blocking(source, False)
            self._selector.register(source, selectors.EVENT_READ)
        self._write(1, "vLLM is starting, which takes a minute or more; what it writes is shown once it answers\n")
        started = last = time.monotonic()
        while self._sources:
            ready = self._selector.select(None if self._settled else max(0.0, last + PROGRESS - time.monotonic()))
            for key, _ in ready:
                if key.fd in self._sources:
                    self._read(key.fd)
                else:
                    self._listen()
            if not self._settled and time.monotonic() >= last + PROGRESS:
                last = time.monotonic()
                self._write(1, f"{last - started:.0f} s: {self._last_line()}\n")
        if not self._settled:
            self._fail(KILLED)

    def _read(self, source: int) -> bool:
        """Take one piece of what is there; False if nothing is."""
        try:
            piece = os.read(source, CHUNK)
        except BlockingIOError:
            return False
        if not piece:
            self._selector.unregister(source)
            del self._sources[source]
            return False
        target = self._sources[source]
        if self._held is not None:
            self._held.append((target, piece))
        else:
            self._write(target, piece)
        return True

    def _listen(self) -> None:
        """Hear how the start ended."""
        try:
            piece = self._control.recv(CHUNK)
        except BlockingIOError:
            return
        self._said += piece
        if piece:
            return
        self._selector.unregister(self._control)
        outcome, _, text = self._said.partition(b" ")
        if outcome in (ANSWERS, FAILED, STOPPED):
            for source in list(self._sources):
                while self._read(source):
                    pass
            self._settle(outcome, text.decode())
        self._control.close()

    def _settle(self, outcome: bytes, text: str) -> None:
        if outcome == ANSWERS:
            held, self._held, self._settled = self._held or [], None, True
            for target, piece in held:
                self._write(target, piece)
            self._write(1, f"{text}\n" if text else "")
        elif outcome == FAILED:
            self._fail(text or None)
        self._settled = True

    def _fail(self, own: str | None) -> None:
        """Write the line, and the rest to a file."""
        reason = reason_of(self._text(), own)
        try:
            descriptor, path = tempfile.mkstemp(prefix="neuron-guard-vllm-", suffix=".log")
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(piece for _, piece in self._held or [])
            kept = f"All that it wrote is in {path}."
        except OSError as error:
            kept = f"All that it wrote could not be kept: {error.strerror}."
        self._write(2, f"error: vLLM did not start: {reason} {kept}\n")
        self._settled = True

    def _text(self) -> str:
        """All that is held back; stdout before stderr, where each is whole lines."""
        return "\n".join(
            b"".join(piece for target, piece in self._held or [] if target == number).decode(errors="replace")
            for number in (1, 2)
        )

    def _last_line(self) -> str:
        lines = [line.strip() for process, line in messages(self._text()[-CHUNK:]) if process and line.strip()]
        return lines[-1][:SHOWN] if lines else "vLLM is being imported"

    def _write(self, target: int, text: str | bytes) -> None:
        """Write all of it, or, where nobody reads any more, nothing from now on: vLLM must not wait for that."""
        left = memoryview(text.encode() if isinstance(text, str) else text)
        try:
            while left and target not in self._deaf:
                left = left[os.write(target, left) :]
        except OSError:
            self._deaf.add(target)


def _copy_and_end(copier: _Copier) -> NoReturn:
    """The life of the copying process: signals to the whole group are vLLM's to act on."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        copier.run()
    finally:
        os._exit(0)
