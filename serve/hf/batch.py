"""One call of transformers' generate for the sequences of many requests, and one step of it after another.

transformers keeps the cache, the padding and the loop. What it has for a whole batch at once is done here per sequence:
the draw of the token, where to stop, what to hand over. A call can be broken off after any token: its sequences go on
in the next one from the tokens they have, which costs a pass over those tokens and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from guard.runtime.counts import Counts
from serve.hf.logprobs import prompt_logprobs, token_logprobs
from serve.hf.row import Row
from serve.hf.sampling import draw
from serve.http.errors import failed
from serve.job import TokenLogprob

BreakOff = Callable[[int], bool]
OnTokens = Callable[[int], None]
NOT_A_NUMBER = "The model's output is not a number."


class Draw(LogitsProcessor):
    """Draws every row's token by itself and leaves generate no choice: its logit alone is finite."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._samplings = [row.job.sampling for row in rows]
        self._generators = [row.generator for row in rows]
        self.broken = torch.zeros(len(rows), dtype=torch.bool)
        self.logprobs: dict[int, TokenLogprob] = {}

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` [rows, vocabulary], float32: 0 at the drawn token, -inf elsewhere."""
        self.broken = scores.isnan().any(dim=-1)
        tokens = draw(scores, self._samplings, self._generators)
        wanting = [
            row
            for row, sampling in enumerate(self._samplings)
            if sampling.top_logprobs is not None and not self._rows[row].over
        ]
        if wanting:
            tops = [self._samplings[row].top_logprobs or 0 for row in wanting]
            chosen = tokens[wanting].tolist()
            self.logprobs = dict(zip(wanting, token_logprobs(scores[wanting], chosen, tops), strict=True))
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class Step(StoppingCriteria):
    """After every token: gives each sequence its own, and says which are over; all of them if `break_off` says so.

    Everything is counted before it is handed over: who has an answer finds it in the counts.
    """

    def __init__(
        self, rows: Sequence[Row], drawn: Draw, break_off: BreakOff, counts: Counts, on_tokens: OnTokens
    ) -> None:
        self._rows = rows
        self._drawn = drawn
        self._break_off = break_off
        self._counts = counts
        self._on_tokens = on_tokens
        self._made = 0

    def __call__(self, input_ids: Tensor, _scores: object, **_: object) -> Tensor:
        """Bool [rows]: over."""
        self._made += 1
        tokens, broken = input_ids[:, -1].tolist(), self._drawn.broken.tolist()
        going_on = [index for index, row in enumerate(self._rows) if not row.over]
        self._counts.add_up()
        self._on_tokens(sum(not broken[index] for index in going_on))
        for index in going_on:
            row = self._rows[index]
            if broken[index]:
                row.fail(failed(NOT_A_NUMBER))
            else:
                row.take(tokens[index], self._drawn.logprobs.get(index))
        broken_off = self._break_off(self._made)
        over = torch.tensor([broken_off or row.over for row in self._rows], device=input_ids.device)
        self._counts.going_on(~over)
        return over


def plain_generation(model: PreTrainedModel) -> frozenset[int]:
    """Take the sampling habits that a checkpoint comes with off `model`, and return the tokens that end its answers.

    A request's own settings are all that count, and generate fills in what it is not told from the model's.
    """
    ends = getattr(model.generation_config, "eos_token_id", None)
    model.generation_config = generation_settings()
    return frozenset([ends] if isinstance(ends, int) else ends or [])


def generation_settings(**settings: int) -> GenerationConfig:
    """transformers' settings with nothing in them but `settings`; padding is masked, so any token does for it."""
    return GenerationConfig(pad_token_id=0, **settings)  # type: ignore[no-untyped-call]


def score_prompt(model: PreTrainedModel, row: Row, counts: Counts) -> None:
    """Tell `row` how likely its prompt's tokens are, in a pass over them; they are counted here."""
    prompt = row.job.prompt
    with counts.counting(torch.ones(1, len(prompt), dtype=torch.bool, device=next(model.parameters()).device)):
        logprobs = prompt_logprobs(model, prompt, row.job.sampling.top_logprobs or 0)
    row.tally += counts.rows()[0]
    row.scored(logprobs)


def generate(
    model: PreTrainedModel, rows: Sequence[Row], break_off: BreakOff, counts: Counts, on_tokens: OnTokens
) -> None:
    """Go on with `rows` until all are over or `break_off(tokens made)` is true; each row is told its `counts`.

    `on_tokens` is told how many tokens a step made before any of them is handed over.
    A token counts in the pass that sees it first, not in those that see it again after a break.
    """
    device = next(model.parameters()).device
    sequences = [row.tokens for row in rows]
    longest = max(len(sequence) for sequence in sequences)
    padded = [[0] * (longest - len(sequence)) + sequence for sequence in sequences]
    present = [[0] * (longest - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    unseen = torch.tensor([longest - len(row.tokens) + row.tally.tokens for row in rows], device=device)
    drawn = Draw(rows)
    with torch.inference_mode(), counts.counting(torch.arange(longest, device=device) >= unseen[:, None]):
        cast(Any, model).generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(present, device=device),
            generation_config=generation_settings(max_new_tokens=max(row.remaining for row in rows)),
            logits_processor=LogitsProcessorList([drawn]),
            stopping_criteria=StoppingCriteriaList([Step(rows, drawn, break_off, counts, on_tokens)]),
        )
    for row, tally in zip(rows, counts.rows(), strict=True):
        row.tally += tally
