"""Who is scored: a model in this process under a condition, or what an endpoint serves.

Both say for themselves on which tasks they can have no score, so that a score is never made up for want of one.
"""

from dataclasses import dataclass
from typing import Any

import httpx
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.safety.conditions.catalogue import Condition
from benchmarks.tasks.catalogue import Scored

CONTEXT = 2_048  # tokens, where an endpoint does not say what it takes
PATIENCE = 60.0  # seconds, to ask an endpoint about itself
AS_SERVED = "as served"


@dataclass(frozen=True)
class ScoredModel:
    """A model in this process under a condition; `template` says whether answers are asked for by its chat template."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    condition: Condition
    batch_size: int = 8
    template: bool = True

    @property
    def name(self) -> str:
        """The condition's."""
        return self.condition.name

    @property
    def system(self) -> str | None:
        """The condition's system prompt."""
        return self.condition.system

    def without(self, task: Scored) -> str | None:
        """Why this condition has no score on a task, as a sentence."""
        if self.condition.rewrite is None or task.generates:
            return None
        return f"{task.name} is left out under {self.name}: what changes finished answers changes no probability."

    def harness(self, _: Scored) -> tuple[Any, int]:
        """The model as lm-eval takes it, and its context in tokens."""
        from benchmarks.tasks.harness import ConditionedModel

        found = ConditionedModel(self.model, self.tokenizer, self.condition, batch_size=self.batch_size)
        return found, int(found.max_length)


@dataclass(frozen=True)
class ScoredEndpoint:
    """An OpenAI-compatible endpoint at `url`, up to its /v1; chats go by its own template.

    `tokenizer` is a path or hub name, for an endpoint without /tokenize. `at_once` requests are under way at a time.
    """

    url: str
    model: str
    key: str | None = None
    name: str = AS_SERVED
    tokenizer: str | None = None
    at_once: int = 8
    template: bool = True
    system: str | None = None

    def without(self, task: Scored) -> str | None:
        """Why this endpoint gives no score on a task, as a sentence."""
        if task.generates:
            return None
        body = {"model": self.model, "prompt": "a b", "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            answer = self._client().post(f"{self._base}/completions", json=body)
        except httpx.HTTPError as error:
            return f"{task.name} is left out: {self._base} does not answer ({type(error).__name__})."
        if answer.status_code != httpx.codes.OK:
            return (
                f"{task.name} is left out: {self._base}/completions gives no log-probabilities of a prompt "
                f"({answer.status_code}); neuron-guard serve does with --completions."
            )
        return None

    def harness(self, task: Scored) -> tuple[Any, int]:
        """The endpoint as lm-eval asks it, and its context in tokens."""
        from benchmarks.tasks.harness import at_endpoint

        context = self._context()
        found = at_endpoint(
            self._base,
            self.model,
            self.key,
            context=context,
            tokenizer=self.tokenizer,
            generates=task.generates,
            at_once=self.at_once,
        )
        return found, context

    @property
    def _base(self) -> str:
        return self.url.rstrip("/")

    def _client(self) -> httpx.Client:
        return httpx.Client(headers={"Authorization": f"Bearer {self.key}"} if self.key else {}, timeout=PATIENCE)

    def _context(self) -> int:
        """What /models says of this model, in tokens, as vLLM and neuron-guard serve do; CONTEXT where it does not."""
        try:
            models = self._client().get(f"{self._base}/models").raise_for_status().json()["data"]
            return int(next((one.get("max_model_len") for one in models if one["id"] == self.model), None) or CONTEXT)
        except (httpx.HTTPError, ValueError, LookupError, AttributeError, TypeError):
            return CONTEXT


Answering = ScoredModel | ScoredEndpoint
