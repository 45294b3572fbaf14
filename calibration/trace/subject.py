"""What a trace is made of: the prompt (and the other one) as token ids, laid out for Y and for patching.

Without another prompt nothing has to line up, so all columns of the prompt are open to intervention. With one, they
line up from the end: as far as both have the same tokens there, or all the way where both are equally long. That
reaches the words in which two prompts of one form differ, which calibration's template tail does not.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from calibration.judging.behaviour import pad_token
from calibration.prompts.request_sets import encode
from calibration.prompts.sequences import Batch, Example, collate, common_tail
from calibration.trace.replies import Continuations
from guard.errors import NeuronGuardError
from guard.families.architectures import text_configuration

MOST_TOKENS = 1024
LIMITS = ("max_position_embeddings", "n_positions")


class PromptError(NeuronGuardError):
    """A prompt that cannot be traced."""


@dataclass(frozen=True)
class Subject:
    """A model and a prompt under the lens. `batch` is one request, x*; `reference` the other prompt, x, laid out alike.

    `columns` are the batch's columns that are shown: the prompt's tokens, then the steps of the reply that are read on.
    `aligned` are those at which mediators can take the other prompt's values; without one, all of them.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prompt: tuple[int, ...]
    other: tuple[int, ...] | None
    continuations: Continuations
    batch: Batch
    reference: Batch | None

    @property
    def first(self) -> int:
        """The batch's column of the prompt's first token: what comes before it is padding."""
        return self.batch.prompt_width - len(self.prompt)

    @property
    def columns(self) -> range:
        """See the class."""
        return range(self.first, self.batch.edited.stop)

    @property
    def prompt_columns(self) -> range:
        """The columns of the prompt alone."""
        return range(self.first, self.batch.prompt_width)

    @property
    def aligned(self) -> range:
        """See the class."""
        if self.other is not None and len(self.other) != len(self.prompt):
            return range(self.batch.edited.start, self.batch.edited.stop)
        return self.columns


def encode_prompt(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, text: str, room: int, *, template: bool
) -> tuple[int, ...]:
    """The prompt's token ids; PromptError where it is empty or leaves no `room` for the reply's tokens."""
    if not text.strip():
        raise PromptError("the prompt is empty: give the request as it would be typed.")
    ids = encode(tokenizer, text, template=template)
    configuration = text_configuration(model)
    limits = [limit for name in LIMITS if isinstance(limit := getattr(configuration, name, None), int)]
    most = min([MOST_TOKENS, *(limit - room for limit in limits)])
    if not 0 < len(ids) <= most:
        raise PromptError(f"the prompt has {len(ids)} tokens, and a trace takes between 1 and {most} with this model.")
    return ids


def lay_out(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: tuple[int, ...],
    other: tuple[int, ...] | None,
    continuations: Continuations,
) -> Subject:
    """The subject of a prompt and, perhaps, another one."""
    replies = (continuations.compliance.tokens, continuations.refusal.tokens)
    device = next(model.parameters()).device
    both = [prompt] if other is None else [prompt, other]
    width = max(map(len, both))
    tail = len(prompt) if other is None else common_tail(both)

    def batch(ids: tuple[int, ...]) -> Batch:
        example = Example(ids, *replies)
        return collate([example], pad_id=pad_token(tokenizer), device=device, prompt_width=width, tail=tail)

    reference = None if other is None else batch(other)
    return Subject(model, tokenizer, prompt, other, continuations, batch(prompt), reference)


def visible_tokens(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...] | list[int]) -> tuple[str, ...]:
    """Each token's text by itself; a character that spans tokens shows as the replacement character in each."""
    return tuple(str(tokenizer.decode([token])) for token in ids)
