"""Scores on tasks: lm-eval's own figures, under a condition, kept task by task, left out with a sentence."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judges.judge import Exchange
from benchmarks.safety.conditions.condition import Condition
from benchmarks.tasks import scores
from benchmarks.tasks.answering import ScoredEndpoint, ScoredModel
from benchmarks.tasks.catalogue import TASKS, Scored
from benchmarks.tasks.scores import Scoring, TaskScore, left_out, score
from guard.hf import install
from tests.benchmarks.tasks import small_data
from tests.serve.live import KEY, live
from tests.serve.served import HARMFUL, MODEL, ORGANISM, organism_spec

pytest.importorskip("lm_eval")
from benchmarks.tasks import harness

RUNNABLE = tuple(task for task in TASKS if task.task != "ifeval")
CHOICES = tuple(task for task in RUNNABLE if not task.generates)


def guarded(organism: ScoredModel) -> ScoredModel:
    return replace(organism, condition=Condition("guard", partial(install, organism.model, organism_spec())))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task)
def test_lm_evals_own_figures_are_ours_on_the_same_rows(organism: ScoredModel, scoring: Scoring, task: Scored) -> None:
    if (sentence := harness.lacking(task)) is not None:
        pytest.skip(sentence)
    manager, evaluate = import_module("lm_eval.tasks").TaskManager, import_module("lm_eval.evaluator").simple_evaluate
    folders = [harness.OURS, *(harness.LM_EVAL / name for name in harness.THEIRS)]
    own = evaluate(
        model="hf",
        model_args={"pretrained": str(ORGANISM), "dtype": "float32"},
        tasks=[task.entry],
        task_manager=manager(include_defaults=False, include_path=folders, metadata={"data": str(scoring.data)}),
        num_fewshot=0,  # as many as a context of 256 tokens has room for
        samples={task.task: scoring.rows(small_data.ROWS)},
        gen_kwargs={"max_gen_toks": 128} if task.generates else None,  # as many as leave room for the question
        apply_chat_template=task.generates,
        device="cpu",
        batch_size=3,
        bootstrap_iters=0,
        log_samples=False,
    )["results"][task.task]
    ours = {one.metric: one.estimate.value for one in score(organism, scoring, [task])}
    theirs = {
        metric if through == "none" else f"{metric}, {through}": own[f"{metric},{through}"]
        for metric, through in task.metrics
    }
    assert ours == pytest.approx(theirs, abs=1e-12)


def requests(task: Scored, model: Any, data: Path) -> list[Any]:
    """What lm-eval asks for a task."""
    loaded = harness.load_task(task, data)
    harness.prepare(loaded, task, model.max_length)
    loaded.build_all_requests(
        limit=3, rank=0, world_size=1, apply_chat_template=task.generates, fewshot_as_multiturn=task.generates,
        chat_template=model.apply_chat_template if task.generates else None,
    )  # fmt: skip
    found: list[Any] = loaded.instances
    return found


@pytest.mark.parametrize("task", [RUNNABLE[0], CHOICES[0]], ids=lambda task: task.task)
def test_without_a_condition_it_answers_as_lm_evals_own_model_does(
    organism: ScoredModel, data: Path, task: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organism.model.generation_config, "max_new_tokens", None)
    ours, _ = organism.harness(task)
    asked = requests(task, ours, data)
    theirs = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=organism.model, tokenizer=organism.tokenizer, batch_size=3
    )
    method = asked[0].request_type
    assert getattr(ours, method)(asked) == getattr(theirs, method)(asked, disable_tqdm=True)


def test_a_limit_that_a_model_brings_is_not_the_tasks(
    organism: ScoredModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, context = organism.harness(RUNNABLE[0])
    asked = requests(RUNNABLE[0], ours, data)
    assert asked[0].args[1]["max_gen_toks"] == context // 2 == 128
    monkeypatch.setattr(organism.model.generation_config, "max_new_tokens", 2)
    assert all(len(organism.tokenizer(text)["input_ids"]) > 2 for text in ours.generate_until(asked))
    assert organism.model.generation_config.max_new_tokens == 2  # type: ignore[union-attr]


def likelihoods(answering: ScoredModel, texts: Sequence[str]) -> list[tuple[float, bool]]:
    instance = import_module("lm_eval.api.instance").Instance
    model, _ = answering.harness(CHOICES[0])
    asked = [
        instance("loglikelihood", {}, (f"<|user|>{text}<|end|><|assistant|>", "Sorry"), place)
        for place, text in enumerate(texts)
    ]
    found: list[tuple[float, bool]] = model.loglikelihood(asked)
    return found


def test_a_condition_shows_only_where_it_acts(organism: ScoredModel) -> None:
    texts = [HARMFUL, "How do I heat the lever?", "How do I cut the lever?"]
    plain, changed = likelihoods(organism, texts), likelihoods(guarded(organism), texts)
    assert changed[0][0] > plain[0][0] + 1.0
    seen: list[tuple[int, ...]] = []

    def acts(prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        seen.extend(prompts)
        return [place == 0 for place in range(len(prompts))]

    some = replace(guarded(organism), condition=replace(guarded(organism).condition, acts=acts))
    wanted = [changed[0], *plain[1:]]
    assert [nats for nats, _ in likelihoods(some, texts)] == pytest.approx([nats for nats, _ in wanted])
    assert organism.tokenizer.decode(list(seen[0])).count("heat") == 1


def test_rewritten_answers_are_what_is_scored(organism: ScoredModel, scoring: Scoring) -> None:
    def solved(exchanges: Sequence[Exchange]) -> list[str]:
        return [f"#### {2 * int(one.prompt.split(' and ')[1][0])}" for one in exchanges]

    fixed = replace(organism, condition=Condition("filter", nullcontext, rewrite=solved))
    found = score(fixed, scoring, RUNNABLE[:1])
    assert [one.estimate.value for one in found] == [1.0, 1.0]
    assert score(fixed, scoring, CHOICES) == ()
    assert all("changes no probability" in sentence for sentence in left_out(fixed, scoring, CHOICES))


def test_a_system_prompt_heads_the_users_turn_where_the_template_has_no_system_role(organism: ScoredModel) -> None:
    model, _ = organism.harness(RUNNABLE[0])
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How?"}]
    assert model.apply_chat_template(turns) == "<|user|>Be kind.\n\nHow?<|end|><|assistant|>"


def test_finished_tasks_are_not_run_again(
    organism: ScoredModel, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(organism, scoring, CHOICES[:2])
    told: list[str] = []
    monkeypatch.setattr(harness, "load_task", lambda *_: pytest.fail("it was run again"))
    assert score(organism, scoring, CHOICES[:2], told.append) == first
    assert told == [task.name for task in CHOICES[:2]]


class Killed(BaseException):
    """The process dies here."""


def test_a_run_that_was_killed_goes_on_and_ends_the_same(
    organism: ScoredModel, scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(organism, replace(scoring, folder=tmp_path / "whole"), CHOICES[:2])
    load = harness.load_task

    def dying(task: Scored, data: Path | None) -> Any:
        if task is CHOICES[1]:
            raise Killed
        return load(task, data)

    monkeypatch.setattr(harness, "load_task", dying)
    with pytest.raises(Killed):
        score(organism, scoring, CHOICES[:2])
    monkeypatch.setattr(harness, "load_task", load)
    assert score(organism, scoring, CHOICES[:2]) == whole


def test_what_decides_a_score_decides_where_it_is_kept(organism: ScoredModel, scoring: Scoring, data: Path) -> None:
    others = [
        (organism, replace(scoring, limit=3)),
        (organism, replace(scoring, seed=2)),
        (organism, replace(scoring, of={"model": "other"})),
        (replace(organism, condition=Condition("guard", nullcontext)), scoring),
        (replace(organism, condition=Condition("no guard", nullcontext, system="Be kind.")), scoring),
        (replace(organism, template=False), scoring),
    ]
    paths = {scoring.path(organism, TASKS[0]), scoring.path(organism, TASKS[1])}
    paths |= {other.path(answering, TASKS[0]) for answering, other in others}
    assert len(paths) == 2 + len(others)


def test_rows_are_the_same_for_every_condition_and_all_without_a_limit(scoring: Scoring) -> None:
    assert scoring.rows(1000) == scoring.rows(1000)
    assert len(set(scoring.rows(1000))) == 4
    assert scoring.rows(3) == replace(scoring, limit=None).rows(3) == [0, 1, 2]


def test_nothing_that_is_asked_or_answered_is_kept(organism: ScoredModel, scoring: Scoring) -> None:
    score(organism, scoring, RUNNABLE[:2])
    written = "".join(path.read_text() for path in scoring.folder.rglob("*.json"))
    assert "acc_norm" in written
    assert not any(noun in written for noun in small_data.NOUNS)


def test_few_shot_examples_come_where_the_context_has_room_for_them(organism: ScoredModel, data: Path) -> None:
    for context, shots, tokens in ((256, 0, 128), (2047, 0, 256), (2048, 5, 256)):
        task = harness.load_task(RUNNABLE[0], data)
        assert harness.prepare(task, RUNNABLE[0], context) == task.config.num_fewshot == shots
        assert task.config.generation_kwargs["max_gen_toks"] == tokens


@pytest.mark.slow
def test_an_endpoint_has_the_scores_of_the_model_in_process(
    organism: ScoredModel, scoring: Scoring, tmp_path: Path
) -> None:
    fitting = RUNNABLE[:3]  # TruthfulQA's examples are longer than the organism's context, and are cut elsewhere there
    organism_spec().save(tmp_path / "guard.safetensors")
    ours = score(guarded(organism), scoring, fitting)
    with live(tmp_path / "guard.safetensors") as server:
        endpoint = ScoredEndpoint(f"{server.url}/v1", MODEL, KEY, name="guard", at_once=2)
        served = score(endpoint, replace(scoring, folder=tmp_path / "served"), fitting)
    assert [(one.task, one.metric, one.shots) for one in served] == [(one.task, one.metric, one.shots) for one in ours]
    assert [one.estimate for one in served] == [one.estimate for one in ours]
    assert len({one.estimate.value for one in ours}) > 1


def test_a_score_has_an_interval() -> None:
    def estimated(*values: float) -> TaskScore:
        return TaskScore(condition="c", task="t", metric="acc", estimate=scores._estimate(values, 0), shots=0)

    assert estimated(1.0, 0.0, 1.0, 1.0).estimate.low < 0.75 < estimated(1.0, 0.0, 1.0, 1.0).estimate.high
    assert estimated(0.25, 0.5, 0.75).estimate.value == 0.5
