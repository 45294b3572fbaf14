"""The reason for a start that failed is the error of the process in which it went wrong."""

import pytest

from serve.vllm.reason import NOTHING_SAID, reason_of, sentence

POINTS = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


def logged(process: str, headline: str, *errors: str) -> str:
    """What vLLM writes where a process ends with errors, each of which led to the next."""
    lines = [headline]
    for number, error in enumerate(errors):
        if number:
            lines += ["", "During handling of the above exception, another exception occurred:", ""]
        lines += ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "    f()", "    ^^^", error]
    return "".join(f"({process} pid=12) ERROR 12-01 17:23:03 [core.py:1510] {line}\n" for line in lines)


WORKER = logged("Worker", "WorkerProc failed to start.", "ValueError: no attention for head_dim 24")
CORE = logged(
    "EngineCore", "EngineCore failed to start.", "Exception: WorkerProc failed. See stack trace for root cause."
)


def test_the_workers_error_counts_and_not_those_that_point_to_it() -> None:
    assert reason_of(WORKER + CORE, POINTS) == "no attention for head_dim 24."


def test_of_errors_that_led_to_one_another_the_last_counts() -> None:
    written = logged("Worker", "WorkerProc failed to start.", "KeyError: 'x'", "guard.errors.SpecError: it has no x.")
    assert reason_of(written, POINTS) == "it has no x."


def test_the_first_of_several_workers_counts() -> None:
    other = logged("Other", "WorkerProc hit an exception.", "ConnectionError: a peer closed the connection")
    assert reason_of(WORKER + other + CORE, POINTS) == "no attention for head_dim 24."


def test_an_error_that_did_not_end_the_start_does_not_count() -> None:
    plugin = logged("APIServer", "Failed to load plugin x", "ImportError: there is no x here")
    assert reason_of(plugin + WORKER, POINTS) == "no attention for head_dim 24."
    assert reason_of(plugin, "ValueError: there is no model") == "there is no model."


def test_lines_of_processes_that_write_at_once_are_told_apart() -> None:
    mixed = [line for pair in zip(WORKER.splitlines(), CORE.splitlines(), strict=True) for line in pair]
    assert reason_of("\n".join(mixed), POINTS) == "no attention for head_dim 24."


def test_where_headlines_are_unknown_the_last_error_counts_that_points_to_no_other() -> None:
    written = logged("Worker", "Something new.", "ValueError: no attention for head_dim 24") + CORE
    assert reason_of(written, POINTS) == "no attention for head_dim 24."


def test_without_a_stack_trace_the_last_line_counts() -> None:
    assert reason_of("usage: x\nx.py: error: unrecognized arguments: --y\n", None) == "unrecognized arguments: --y."
    assert reason_of("\n", None) == NOTHING_SAID


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            "pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, X is not supported for now. [type=value_error, input_value={}]\n    For further",
            "X is not supported for now.",
        ),
        ("RuntimeError: Errors in loading:\n\tsize mismatch for a", "Errors in loading: size mismatch for a."),
        ("KeyError: 'rope'", "KeyError: 'rope'."),
        ("AssertionError", "AssertionError."),
        ("OSError: [Errno 98] Address already in use\n", "[Errno 98] Address already in use."),
    ],
)
def test_an_error_becomes_one_sentence(printed: str, said: str) -> None:
    assert sentence(printed) == said


def test_a_long_message_is_cut() -> None:
    assert len(sentence(f"ValueError: {'x ' * 5000}")) < 600
