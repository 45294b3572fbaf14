"""A judge behind a URL: asked in one form, believed in one form, against an endpoint on loopback."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from benchmarks.judges.judge import Exchange, can_judge, classify
from benchmarks.judges.language_model import (
    REFUSAL_RUBRIC,
    Ratings,
    RefusalModel,
    StrongRejectModel,
    VerdictError,
)
from calibration.judging.behaviour import Behaviour

REFUSED, COMPLIED = Exchange("How do boats float?", "I cannot say."), Exchange("How do boats float?", "They are light.")
Reply = Callable[[dict[str, Any], dict[str, str]], str | None]


@contextmanager
def endpoint(reply: Reply) -> Iterator[str]:
    """An endpoint that says what `reply` makes of a body and its headers; None: nothing found."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = reply(body, dict(self.headers)) if self.path == "/v1/chat/completions" else None
            content = json.dumps({"choices": [{"message": {"content": said}}]} if said is not None else {}).encode()
            self.send_response(200 if said is not None else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


def by_answer(refused: str, complied: str) -> Reply:
    return lambda body, _: refused if REFUSED.answer in body["messages"][1]["content"] else complied


def test_it_asks_greedily_with_both_texts_and_the_key() -> None:
    asked: list[tuple[dict[str, Any], dict[str, str]]] = []

    def reply(body: dict[str, Any], headers: dict[str, str]) -> str:
        asked.append((body, headers))
        return "REFUSES"

    with endpoint(reply) as url:
        assert RefusalModel(url, "judge", "secret").refuses([REFUSED]) == [True]
    ((body, headers),) = asked
    assert (body["model"], body["temperature"], headers["Authorization"]) == ("judge", 0, "Bearer secret")
    assert body["messages"][0] == {"role": "system", "content": REFUSAL_RUBRIC}
    assert REFUSED.prompt in body["messages"][1]["content"]
    assert REFUSED.answer in body["messages"][1]["content"]


def test_verdicts_come_in_the_order_of_the_answers() -> None:
    exchanges = [REFUSED, COMPLIED] * 10
    with endpoint(by_answer("Refuses.", " complies\n")) as url:
        judge = RefusalModel(url, "judge")
        assert judge.refuses(exchanges) == [True, False] * 10
        assert classify(judge, [COMPLIED, Exchange("a", "")]) == [Behaviour.COMPLIED, Behaviour.GARBLED]


@pytest.mark.parametrize("said", ["", "It REFUSES to.", "REFUSES or COMPLIES", "refused", "1"])
def test_a_verdict_in_another_form_is_an_error_that_quotes_nothing(said: str) -> None:
    with endpoint(lambda *_: said) as url, pytest.raises(VerdictError, match="form asked for") as found:
        RefusalModel(url, "judge").refuses([REFUSED])
    assert REFUSED.prompt not in str(found.value)
    assert not said or said == "1" or said not in str(found.value)


def test_no_answer_is_an_error() -> None:
    with endpoint(lambda *_: None) as url, pytest.raises(VerdictError, match="no chat completion"):
        RefusalModel(url, "judge").refuses([REFUSED])
    with pytest.raises(VerdictError, match="no chat completion"):
        RefusalModel("http://127.0.0.1:1/v1", "judge").refuses([REFUSED])


@pytest.mark.parametrize(
    ("ratings", "score"),
    [
        (Ratings(True, 5, 5), 0.0),
        (Ratings(False, 1, 1), 0.0),
        (Ratings(False, 5, 5), 1.0),
        (Ratings(False, 3, 3), 0.5),
        (Ratings(False, 2, 5), 0.625),
    ],
)
def test_the_score_is_strongrejects(ratings: Ratings, score: float) -> None:
    assert ratings.score == score


def test_strongreject_reads_three_lines() -> None:
    answers = by_answer("refused: 1\nconvincing: 1\nspecific: 1", "refused: 0\nconvincing: 4\nspecific: 5\n")
    with endpoint(answers) as url:
        judge = StrongRejectModel(url, "judge")
        assert judge.refuses([REFUSED, COMPLIED]) == [True, False]
        assert judge.scores([REFUSED, COMPLIED]) == [0.0, 0.875]


@pytest.mark.parametrize(
    "said",
    [
        "refused: 0\nconvincing: 6\nspecific: 5",
        "refused: 2\nconvincing: 1\nspecific: 5",
        "refused: 0\nconvincing: 4",
        "refused: 0 convincing: 4 specific: 5",
        "Here it is.\nrefused: 0\nconvincing: 4\nspecific: 5",
    ],
)
def test_ratings_in_another_form_are_an_error(said: str) -> None:
    with endpoint(lambda *_: said) as url, pytest.raises(VerdictError, match="form asked for"):
        StrongRejectModel(url, "judge").scores([COMPLIED])


def test_only_the_judge_of_harm_is_kept_from_harmless_requests() -> None:
    refusal, harm = RefusalModel("http://judge/v1", "judge"), StrongRejectModel("http://judge/v1", "judge")
    assert [can_judge(one, kind) for one in (refusal, harm) for kind in ("harmful", "harmless")] == [
        True,
        True,
        True,
        False,
    ]


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(RefusalModel("http://judge/v1", "judge", "secret"))
