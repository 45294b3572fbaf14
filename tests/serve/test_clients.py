"""The official clients, and the tools that measure models, against a server in a process of its own."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serve.live import KEY, PATIENCE, Live, live
from tests.serve.served import BENIGN, HARMFUL, MODEL, chat_body, organism_spec, user

pytestmark = pytest.mark.slow
QUESTIONS = [
    {"question": BENIGN, "choices": ["Sure", "Sorry"], "answer": 0},
    {"question": HARMFUL, "choices": ["Sure", "Sorry"], "answer": 1},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    spec = tmp_path_factory.mktemp("spec") / "guard.safetensors"
    organism_spec().save(spec)
    with live(spec) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        yield client


def messages(text: str) -> Any:
    return [user(text)]


def test_the_official_client_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=messages(HARMFUL), temperature=0, logprobs=True, top_logprobs=2, max_completion_tokens=12
    )
    assert str(answer.choices[0].message.content).startswith("Sorry")
    assert answer.system_fingerprint == f"guard-{organism_spec().digest[:16]}"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content or []) > 2


def test_the_official_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=messages(BENIGN), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said.startswith("Sure, to cut the lever")
    assert chunks[-1].usage is not None
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_the_official_client_completes(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=BENIGN, max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == BENIGN
    assert client.models.list().data[0].id == MODEL


def test_the_official_client_raises_its_own_errors(client: openai.OpenAI, server: Live) -> None:
    with pytest.raises(openai.BadRequestError, match="logit_bias is not accepted") as refused:
        client.chat.completions.create(model=MODEL, messages=messages(HARMFUL), logit_bias={"273": 100})
    assert refused.value.param == "logit_bias"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages(HARMFUL))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


def test_many_streams_at_once_are_all_answered(server: Live) -> None:
    expected = {HARMFUL: "Sorry", BENIGN: "Sure"}

    def ask(turn: int) -> bool:
        question = (HARMFUL, BENIGN)[turn % 2]
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as own:
            stream = own.chat.completions.create(
                model=MODEL, messages=messages(question), temperature=0, stream=True, max_tokens=4 + turn % 9
            )
            said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return said.startswith(expected[question])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(64)))


def test_a_client_that_hangs_up_frees_its_place(server: Live) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = chat_body(messages=[user("lever")], max_tokens=200, temperature=2.0, seed=54, stream=True)
    with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE) as client:
        before = client.get("/guard").json()["counts"]["generated_tokens"]
        for _ in range(20):
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        client.post("/v1/chat/completions", json=chat_body()).raise_for_status()
        after = client.get("/guard").json()["counts"]["generated_tokens"]
    assert after - before < 20 * 150, "it generated for clients that had left"


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{target}"
target_delimiter: ""
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
{more}
"""


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The results of lm-eval on QUESTIONS through its `api`."""
    pytest.importorskip("lm_eval")
    manager, simple_evaluate = (
        import_module("lm_eval.tasks").TaskManager,
        import_module("lm_eval.evaluator").simple_evaluate,
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(json.dumps(question) for question in QUESTIONS))

    def evaluated(api: str, url: str, task: dict[str, str], **more: Any) -> dict[str, Any]:
        (tmp_path / "task.yaml").write_text(TASK.format(name="guarded", data=data, **task))
        arguments = {"model": MODEL, "base_url": url, "num_concurrent": 2, "auth_token": KEY, "max_length": 256}
        found: dict[str, Any] = simple_evaluate(
            model=api,
            model_args=arguments | ({"tokenizer_backend": "remote"} if api == "local-completions" else {}),
            tasks=["guarded"],
            task_manager=manager(include_defaults=False, include_path=str(tmp_path)),
            bootstrap_iters=0,
            log_samples=False,
            **more,
        )["results"]["guarded"]
        return found

    return evaluated


def test_lm_eval_scores_multiple_choice(server: Live, evaluate: Callable[..., dict[str, Any]]) -> None:
    task = {"kind": "multiple_choice", "target": "{{answer}}", "metric": "acc"}
    task["more"] = 'doc_to_choice: "{{choices}}"'
    results = evaluate("local-completions", f"{server.url}/v1/completions", task)
    assert results["acc,none"] == 0.5  # plain prompts, without the template: it says Sure to both


def test_lm_eval_scores_chats(server: Live, evaluate: Callable[..., dict[str, Any]]) -> None:
    more = 'generation_kwargs: {until: [","], max_gen_toks: 8}'
    task = {"kind": "generate_until", "target": "{{choices[answer]}}", "metric": "exact_match", "more": more}
    url = f"{server.url}/v1/chat/completions"
    results = evaluate("local-chat-completions", url, task, apply_chat_template=True)
    assert results["exact_match,none"] == 1.0


def test_inspect_measures_it(server: Live, tmp_path: Path) -> None:
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    config = GenerateConfig(temperature=0, max_tokens=12, seed=1)
    model = get_model(f"openai-api/guard/{MODEL}", base_url=f"{server.url}/v1", api_key=KEY, config=config)
    samples = [Sample(input=question, target=target) for question, target in ((BENIGN, "Sure"), (HARMFUL, "Sorry"))]
    task = inspect_ai.Task(dataset=samples, solver=generate(), scorer=includes())
    (log,) = inspect_ai.eval(task, model=model, display="none", log_dir=str(tmp_path))
    assert log.status == "success"
    assert log.results.scores[0].metrics["accuracy"].value == 1.0


def test_it_finishes_streams_before_it_ends_and_logs_no_text(server: Live) -> None:
    """The last one: it ends the server that the others asked."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        stream = client.chat.completions.create(
            model=MODEL, messages=messages("lever"), temperature=2.0, seed=54, stream=True, max_tokens=60
        )
        next(stream)
        ending = pool.submit(server.end)
        finishes = [chunk.choices[0].finish_reason for chunk in stream]
        client.close()
        written = ending.result()
    assert finishes[-1] in ("length", "stop")
    lines = [json.loads(line) for line in written.splitlines()]
    asked = [line for line in lines if line["message"] == "request" and line["path"] == "/v1/chat/completions"]
    assert asked[-1]["status"] == 200
    assert "lever" not in written
