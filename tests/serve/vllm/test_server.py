"""A start of vLLM's that fails is one line and exit code 2; one that succeeds is vLLM's server as it is.

vLLM is stood in for by a package of that name which does what vLLM does in the cases at hand, in seconds.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PATIENCE = 60  # seconds
ANSWERS = "from serve.vllm.output import HeldOutput\nHeldOutput.of_this_process().answers('it answers')\n"
WORKER = """\
import subprocess, sys
print("vLLM's log", flush=True)
subprocess.run([sys.executable, "-c", '''
import logging
logging.basicConfig(format="(Worker pid=7) %(levelname)s 12-01 17:00:00 [file.py:1] %(message)s")
try:
    raise ValueError("head_dim 24 is not supported")
except ValueError:
    logging.exception("WorkerProc failed to start.")
'''])
raise RuntimeError("Engine core initialization failed. See root cause above.")
"""
CHILD = """\
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(); print('the child ends')"], stdin=-1)
"""


def started(folder: Path, code: str) -> "subprocess.Popen[str]":
    """A start of a vLLM whose server is `code`."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for part in (package, package.parent, package.parent.parent):
        (part / "__init__.py").touch()
    (package / "api_server.py").write_text(code, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "serve.vllm.server"],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "TMPDIR": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(folder: Path, code: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; ends only when no process is left that could write."""
    process = started(folder, code)
    out, error = process.communicate(timeout=PATIENCE)
    return process.returncode, out, error


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('the model is of no use')", "the model is of no use."),
        ("import os\nos.mkdir('/proc/nothing/here')", "No such file or directory"),
        ("import argparse\nargparse.ArgumentParser().error('unrecognized arguments: --x')", "unrecognized arguments"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "it was killed before it answered."),
        ("import sys\nsys.exit('no KV cache fits')", "no KV cache fits."),
        (WORKER, "head_dim 24 is not supported."),
    ],
)
def test_a_start_that_fails_is_one_line_which_says_why_and_where_the_rest_is(
    tmp_path: Path, code: str, reason: str
) -> None:
    exit_code, out, error = ended(tmp_path, code)
    assert exit_code == (-signal.SIGKILL if "SIGKILL" in code else 2)
    assert error.startswith("error: vLLM did not start: ")
    assert reason in error
    assert error.count("\n") == 1
    assert out.count("\n") == 1, "more than the line that says that it starts"
    (kept,) = tmp_path.glob("neuron-guard-vllm-*.log")
    assert str(kept) in error


def test_the_file_holds_all_that_was_written(tmp_path: Path) -> None:
    ended(tmp_path, WORKER)
    (kept,) = tmp_path.glob("neuron-guard-vllm-*.log")
    written = kept.read_text(encoding="utf-8")
    assert "vLLM's log" in written
    assert written.count("Traceback") == 2


def test_once_it_answers_what_was_held_back_is_shown_and_all_that_follows(tmp_path: Path) -> None:
    code = f"import sys\n{CHILD}print('loading', file=sys.stderr)\n{ANSWERS}print('serving')\nchild.communicate()\n"
    exit_code, out, error = ended(tmp_path, code)
    assert (exit_code, error) == (0, "loading\n")
    assert sorted(out.splitlines()[1:]) == ["it answers", "serving", "the child ends"]
    assert not list(tmp_path.glob("*.log"))


def test_after_that_an_error_and_its_exit_code_are_vllms_own(tmp_path: Path) -> None:
    exit_code, _, error = ended(tmp_path, f"{ANSWERS}raise RuntimeError('the engine died')")
    assert exit_code == 1
    assert "Traceback" in error
    assert "did not start" not in error


def test_help_is_shown_whole(tmp_path: Path) -> None:
    exit_code, out, error = ended(tmp_path, "import argparse\nargparse.ArgumentParser().parse_args(['--help'])")
    assert (exit_code, error) == (0, "")
    assert "show this help message" in out


def test_a_start_that_is_interrupted_needs_no_explanation(tmp_path: Path) -> None:
    exit_code, _, error = ended(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    assert (exit_code, error) == (-signal.SIGINT, "")


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_vllm_and_nothing_is_left(tmp_path: Path, number: signal.Signals, answers: bool) -> None:
    ready = tmp_path / "ready"
    waits = f"{ANSWERS if answers else ''}open({str(ready)!r}, 'w').close()\nimport signal\nsignal.pause()\n"
    process = started(tmp_path, f"{CHILD}{waits}")
    while not ready.exists():
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)  # ends when no process holds its output any more
    assert process.returncode == -number


def test_when_nobody_reads_its_output_it_serves_on(tmp_path: Path) -> None:
    done = tmp_path / "done"
    process = started(tmp_path, f"{ANSWERS}print('x' * 1000000, flush=True)\nopen({str(done)!r}, 'w').close()")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert done.exists()
