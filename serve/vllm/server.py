"""vLLM's server in this process, its output held back until it answers: `python -m serve.vllm.server`, vLLM's options.

A start that fails ends in one line and exit code 2, whatever in vLLM has failed. Once it answers, it is vLLM's server
as it is, exit codes included. The arguments and the environment are those that serve/vllm/launch.py made.
"""

import runpy
import traceback
from types import TracebackType

from serve.vllm.output import HeldOutput

MODULE = "vllm.entrypoints.openai.api_server"
DOES_NOT_START = 2


class Starting:
    """What becomes of an error of vLLM's: a line, and exit code 2, if it comes before the server answers."""

    def __enter__(self) -> None:
        HeldOutput()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = HeldOutput.of_this_process()
        if held is None:
            return
        if kind is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            held.answers("")  # such as --help
        elif isinstance(error, KeyboardInterrupt):
            held.stopped()
        else:
            if isinstance(error, SystemExit):  # a number where what is wrong has been written already
                own = error.code if isinstance(error.code, str) else None
            else:
                traceback.print_exception(error)  # for the file
                own = "".join(traceback.format_exception_only(error))
            held.failed(own)
            raise SystemExit(DOES_NOT_START) from error


def main() -> None:
    """Serve until vLLM ends."""
    with Starting():
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
