"""A prompt set as a task of inspect-ai, scored by one of our judges, so that its users can measure a guard with it.

inspect-ai asks the model and counts; which class an answer has is the judge's to say, as everywhere here, so its
figures are our rates on the same requests. inspect-ai keeps every text in its log by default, and with harmful requests
that is what must not be: here a sample is known by its digest, a score holds a class alone, and no samples, events or
requests to a model are logged. It trades inspect-ai's viewer of conversations for logs that can be passed on.

    rates = measured(prompts, served(url, model, key), judge, max_new_tokens=64, log_folder=Path("logs"))
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import inspect_ai
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import TaskState, generate

from benchmarks.judges.judge import Exchange, Judge, classify
from benchmarks.safety.conditions.respondents import Respondent
from benchmarks.safety.prompt_sets import Prompts, digest_of
from calibration.judging.behaviour import Behaviour
from guard.errors import NeuronGuardError


class InspectError(NeuronGuardError):
    """An evaluation that inspect-ai did not finish."""


def served(url: str, model: str, key: str | None) -> Model:
    """A model behind an OpenAI-compatible endpoint at `url`, up to its /v1."""
    return get_model(f"openai-api/neuron-guard/{model}", base_url=url, api_key=key or "none", memoize=False)


def in_process(respondent: Respondent) -> Model:
    """Whoever answers requests in this process, each message alone."""

    def answer(messages: list[ChatMessage], *_: object) -> ModelOutput:
        found = ModelOutput.from_content("in-process", respondent.answer([messages[-1].text])[0])
        return found.model_copy(update={"usage": ModelUsage()})  # or inspect-ai would want a tokenizer to count with

    return get_model("mockllm/in-process", custom_outputs=answer, memoize=False)


def task(prompts: Prompts, judge: Judge, *, max_new_tokens: int) -> inspect_ai.Task:
    """The set as a task: each request asked once, greedily, and its answer's class scored."""
    samples = [Sample(id=digest_of(request), input=request.prompt) for request in prompts.requests]
    return inspect_ai.Task(
        dataset=MemoryDataset(samples, name=prompts.name),
        solver=generate(),
        scorer=_scorer(judge),
        config=GenerateConfig(temperature=0, max_tokens=max_new_tokens),
        name=prompts.name,
    )


def measured(
    prompts: Prompts, model: Model, judge: Judge, *, max_new_tokens: int, log_folder: Path | None = None
) -> dict[Behaviour, float]:
    """The share of each class by inspect-ai's own count. Its log, without texts, stays in `log_folder` if one is named.

    Raises InspectError where inspect-ai could not have every request answered.
    """
    with ExitStack() as stack:
        folder = log_folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (log,) = inspect_ai.eval(
            task(prompts, judge, max_new_tokens=max_new_tokens),
            model=model,
            display="none",
            log_dir=str(folder),
            log_format="json",  # so that anybody can see what is in it
            log_samples=False,
            log_realtime=False,
            log_model_api=False,
        )
    if log.status != "success" or log.results is None:
        raise InspectError(f"inspect-ai did not finish {prompts.name}: its status is {log.status}.")
    return {Behaviour(one.name): float(one.metrics["mean"].value) for one in log.results.scores}


def _scorer(judge: Judge) -> Scorer:
    @scorer(metrics={str(behaviour): [mean()] for behaviour in Behaviour}, name=judge.name.replace(" ", "_"))
    def behaviour_of_answer() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001
            (found,) = classify(judge, [Exchange(state.input_text, state.output.completion)])
            return Score(value={str(behaviour): float(behaviour is found) for behaviour in Behaviour})

        return score

    return behaviour_of_answer()
