"""lm-eval around what answers: a model in this process under a condition, or an endpoint.

The one file that knows lm-eval. Prompts, few-shot examples, stops, filters and metrics are lm-eval's, so that a figure
here is the figure that its command gives for the same rows; what is added is the condition. The model that is loaded
and guarded already is scored as it is: no second copy of its weights, and the very edit that was calibrated.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import lm_eval  # type: ignore[import-untyped]
from jinja2 import TemplateError
from lm_eval.evaluator import evaluate  # type: ignore[import-untyped]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.judges.judge import Exchange
from benchmarks.safety.conditions.catalogue import Condition
from benchmarks.safety.conditions.respondents import EndpointError
from benchmarks.tasks.catalogue import FEW_SHOT_CONTEXT, Scored

OURS, LM_EVAL = Path(__file__).parent, Path(lm_eval.__file__).parent / "tasks"
THEIRS = ("gsm8k", "ifeval", "piqa", "truthfulqa")  # folders of lm-eval's that ours build on: all would take seconds
FEW_SHOT_SEED = 1234  # lm-eval's own
ANSWER_TOKENS = 256  # lm-eval's own, where a task names none
RETRIES, PATIENCE = 3, 600  # seconds
IFEVAL_NEEDS = ("langdetect", "immutabledict", "nltk")

Answers = Callable[..., list[Any]]
Harness = Any
"""A language model as lm-eval takes it."""


class ConditionedModel(HFLM):  # type: ignore[misc]
    """A model in this process that answers lm-eval under a condition."""

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, condition: Condition, *, batch_size: int
    ) -> None:
        # a copy, since lm-eval gives a tokenizer without one a padding token
        super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        self.condition = condition

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation, and whether it is the greedy one."""
        return self._answered(requests, super().loglikelihood, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The greedy answer to each request, as it leaves."""
        with self._as_long_as_asked():
            said: list[str] = self._answered(requests, super().generate_until, disable_tqdm)
        if self.condition.rewrite is None:
            return said
        exchanges = [Exchange(request.args[0], text) for request, text in zip(requests, said, strict=True)]
        return self.condition.rewrite(exchanges)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; where the template has no system role, that heads the first user's turn."""
        try:
            return self._templated(chat_history, add_generation_prompt)
        except TemplateError:
            system, first, *rest = chat_history
            if system["role"] != "system":
                raise
            merged = first | {"content": f"{system['content']}\n\n{first['content']}"}
            return self._templated([merged, *rest], add_generation_prompt)

    @contextmanager
    def _as_long_as_asked(self) -> Iterator[None]:
        """A model that brings a limit of its own would keep to that, not to the task's."""
        own, self.model.generation_config.max_new_tokens = self.model.generation_config.max_new_tokens, None
        try:
            yield
        finally:
            self.model.generation_config.max_new_tokens = own

    def _templated(self, turns: list[dict[str, str]], opens: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opens, continue_final_message=not opens
            )
        )

    def _answered(self, requests: list[Any], answer: Answers, disable_tqdm: bool) -> list[Any]:
        """`answer` under the condition; requests on which it does not act are answered without."""
        acts = [True] * len(requests)
        if self.condition.acts is not None:
            acts = self.condition.acts([tuple(self.tok_encode(request.args[0])) for request in requests])
        chosen = [request for request, acting in zip(requests, acts, strict=True) if acting]
        others = [request for request, acting in zip(requests, acts, strict=True) if not acting]
        with self.condition.installed():
            changed = iter(answer(chosen, disable_tqdm=disable_tqdm) if chosen else [])
        plain = iter(answer(others, disable_tqdm=disable_tqdm) if others else [])
        return [next(changed) if acting else next(plain) for acting in acts]


def at_endpoint(
    url: str, model: str, key: str | None, *, context: int, tokenizer: str | None, generates: bool, at_once: int
) -> Harness:
    """An OpenAI-compatible endpoint at `url`, up to its /v1, as lm-eval asks it.

    What is longer than the context loses its beginning as in process, two tokens sooner: an endpoint wants room to
    answer.

    Choices need completions with the prompt's log-probabilities and token ids: those of `tokenizer` (a path or hub
    name), else those that the endpoint's own /tokenize gives. `context` is in tokens.
    """
    options: dict[str, Any] = {
        "model": model,
        "header": {"Authorization": f"Bearer {key}"} if key else None,
        "auth_token": key,
        "max_length": context,
        "num_concurrent": at_once,
        "max_retries": RETRIES,
        "timeout": PATIENCE,
    }
    if generates:
        return LocalChatCompletion(base_url=f"{url}/chat/completions", **options)
    if tokenizer is None:
        return LocalCompletionsAPI(base_url=f"{url}/completions", tokenizer_backend="remote", **options)
    own = {"tokenizer_backend": "huggingface", "tokenizer": tokenizer, "add_bos_token": True}
    return LocalCompletionsAPI(base_url=f"{url}/completions", **own, **options)


def load_task(scored: Scored, data: Path | None) -> Any:
    """lm-eval's task, its rows from `data` or (None) from the hub."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folders = [OURS, *(LM_EVAL / name for name in THEIRS)]
    metadata: dict[str, Any] = {"data": str(data)} if data is not None else {}
    manager = TaskManager(include_defaults=False, include_path=folders, metadata=metadata)
    return manager.load(scored.entry)["tasks"][scored.task]


def prepare(task: Any, scored: Scored, context: int) -> int:
    """Fit a task to a context of so many tokens: how long an answer may be. Returns how many examples come first.

    An answer may take half of the context at most, and a context that is too short for examples gets none.
    """
    shots = scored.shots if context >= FEW_SHOT_CONTEXT else 0
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    if scored.generates:
        asked = task.config.generation_kwargs.get("max_gen_toks", ANSWER_TOKENS)
        limited = {"max_gen_toks": min(asked, context // 2)}
        task.set_config(key="generation_kwargs", value=limited, update=True)
    return shots


def fitting(harness: Harness, task: Any, scored: Scored, rows: Sequence[int], context: int) -> list[int]:
    """Those of `rows` whose every choice fits into the context: lm-eval cannot score another."""
    if scored.generates:
        return list(rows)
    docs = task.eval_docs

    def fits(choice: str) -> bool:
        # a token has at least one byte, so most choices need not be encoded; an endpoint wants two tokens more
        return len(choice.encode()) < context - 3 or len(harness.tok_encode(f" {choice}")) < context - 3

    return [row for row in rows if all(map(fits, task.doc_to_choice(docs[row])))]


def values_by_row(
    harness: Harness, task: Any, scored: Scored, rows: Sequence[int], *, template: bool, system: str | None
) -> Mapping[tuple[str, str], list[float]]:
    """What lm-eval gives each of the task's `rows`, in their order, by metric and filter.

    Raises EndpointError where an endpoint does not answer as lm-eval needs it to.
    """
    try:
        found = evaluate(
            lm=harness,
            task_dict={"tasks": {scored.task: task}, "groups": {}, "group_map": {}},
            samples={scored.task: list(rows)},
            bootstrap_iters=0,
            log_samples=True,  # in memory: none of it is written
            system_instruction=system,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    except (OSError, aiohttp.ClientError) as error:
        if isinstance(harness, HFLM):
            raise
        raise EndpointError(f"the endpoint stopped answering within {scored.name} ({type(error).__name__}).") from error
    samples = sorted(found["samples"][scored.task], key=lambda sample: sample["doc_id"])
    return {
        (metric, through): [float(sample[metric]) for sample in samples if sample["filter"] == through]
        for metric, through in scored.metrics
    }


def lacking(scored: Scored) -> str | None:
    """What a task needs and this machine lacks, as a sentence; None where nothing is lacking."""
    if scored.task != "ifeval":
        return None
    absent = [name for name in IFEVAL_NEEDS if find_spec(name) is None]
    if absent:
        return f"{scored.name} is left out: it needs {', '.join(absent)}; pip install 'neuron-guard[bench]'."
    import nltk  # type: ignore[import-untyped]

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        if not nltk.download("punkt_tab", quiet=True):
            return f"{scored.name} is left out: nltk's data 'punkt_tab' is neither here nor can it be downloaded."
    return None
