"""Log probabilities of tokens under the guarded model, as OpenAI reports them: before temperature and top_p."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from serve.job import TokenLogprob

LOWEST = -9999.0  # what OpenAI's servers write for a probability of 0, which JSON cannot
POSITIONS = 256  # of a prompt whose log probabilities are in memory at once


def token_logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """For each row of `logits` [rows, vocabulary], float32: its token's log probability and its `tops` likeliest."""
    logprobs = logits.float().log_softmax(dim=-1).clamp_min(LOWEST)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).squeeze(1).tolist()
    values, indices = logprobs.topk(min(max(tops), logprobs.shape[-1]), dim=-1)
    likeliest = [list(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]
    return [
        TokenLogprob(token, logprob, tuple(row[:top]))
        for token, logprob, row, top in zip(tokens, chosen, likeliest, tops, strict=True)
    ]


@torch.inference_mode()
def prompt_logprobs(model: nn.Module, prompt: Sequence[int], top: int) -> tuple[TokenLogprob | None, ...]:
    """For each token of `prompt` its log probability after those before it; None for the first."""
    device = next(model.parameters()).device
    tokens = torch.tensor([prompt], device=device)
    logits: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    scored: list[TokenLogprob | None] = [None]
    for start in range(0, len(prompt) - 1, POSITIONS):
        following = prompt[start + 1 : start + 1 + POSITIONS]
        rows = logits[start : start + len(following)]
        scored += token_logprobs(rows, following, [top] * len(following))
    return tuple(scored)
