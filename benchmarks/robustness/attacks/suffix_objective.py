"""What a suffix is searched by: an objective on one request with a suffix, and its gradient to the suffix's tokens.

A suffix stands at the end of the user's turn, before the template's tail. The lean Y of the model under attack, guard
and all, is one objective. A trigger is a step, through which no gradient passes; so where there is one, a second
objective leans the unguarded model to compliance and keeps the trigger's score below its threshold, beneath which the
guard does nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.effects.outcome import continuation_log_probability, outcome, readout_logits
from calibration.prompts.sequences import Batch, Example, collate
from calibration.runs.layer_calls import calls
from guard.families.architectures import architecture_of
from guard.runtime.trigger import TriggerReadout
from guard.spec.edit_spec import Trigger

Value = Callable[[nn.Module, Batch], Tensor]
CANDIDATES_AT_ONCE = 64
NATS_PER_UNIT = 10.0  # what a trigger's score as far above its threshold as without a suffix weighs against Y


@dataclass(frozen=True, repr=False)
class Place:
    """One request around its suffix: prompt tokens before it and after it, and both forced continuations."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    compliance: tuple[int, ...]
    refusal: tuple[int, ...]

    def batch(self, suffixes: Tensor, *, pad_id: int) -> Batch:
        """The request with each of `suffixes` (int64 [N, L]) as a batch of N."""
        examples = [
            Example((*self.before, *suffix, *self.after), self.compliance, self.refusal) for suffix in suffixes.tolist()
        ]
        return collate(examples, pad_id=pad_id, device=suffixes.device)


def lean(model: nn.Module, batch: Batch) -> Tensor:
    """Y of each request, [B] nats, of the model as it is now."""
    return outcome(readout_logits(model, batch), batch)


def answer(model: nn.Module, batch: Batch) -> Tensor:
    """Mean per-token log-probability of each request's compliance, [B] nats: what Zou et al. search by."""
    compliance, _ = continuation_log_probability(readout_logits(model, batch), batch).chunk(2)
    return compliance


@dataclass(frozen=True)
class Evading:
    """Y of the model without its guard, less what the trigger's score exceeds its threshold by.

    The highest score counts, from the last prompt token on; `unit` is how far it lies above the threshold without a
    suffix, and weighs `NATS_PER_UNIT`.
    """

    trigger: Trigger
    unit: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The objective of each request, [B] nats; `model` carries no guard."""
        entered: list[Tensor] = []
        layer = architecture_of(model).decoder_layers(model)[self.trigger.layer]
        with calls(layer, lambda stream, _: entered.append(stream)):
            leaning = lean(model, batch)
        excess = excess_of(self.trigger, entered[0], batch)
        return leaning - NATS_PER_UNIT * excess.clamp(min=0) / self.unit


def excess_of(trigger: Trigger, entering: Tensor, batch: Batch) -> Tensor:
    """How far a request's highest score lies above the threshold, [B], from the residual stream [2B, T, d_model].

    Read where compliance is forced, from the last prompt token on: there the guard would act.
    """
    readout = TriggerReadout(trigger, entering.device)
    scores = readout.score(entering[: batch.size, batch.prompt_width - 1 :])  # [B, C + 1]
    mask = batch.attention_mask[: batch.size, batch.prompt_width - 1 :].bool()
    return scores.masked_fill(~mask, -torch.inf).amax(dim=1) - readout.threshold


@torch.inference_mode()
def trigger_unit(model: nn.Module, trigger: Trigger, batch: Batch) -> float:
    """The mean over requests of how far the trigger's score lies above its threshold; at least a thousandth of it."""
    entered: list[Tensor] = []
    with calls(architecture_of(model).decoder_layers(model)[trigger.layer], lambda stream, _: entered.append(stream)):
        readout_logits(model, batch)
    return max(float(excess_of(trigger, entered[0], batch).mean()), 1e-3 * abs(trigger.threshold), 1e-6)


@dataclass(frozen=True, repr=False)
class Objective:
    """`value` on `model`, of one request with suffixes. The gradient is exact where embeddings are rows of a table."""

    model: nn.Module
    value: Value
    pad_id: int

    @torch.inference_mode()
    def scores(self, place: Place, suffixes: Tensor) -> Tensor:
        """The objective of each of `suffixes` (int64 [N, L]), [N] nats."""
        parts = torch.split(suffixes, CANDIDATES_AT_ONCE)
        return torch.cat([self.value(self.model, place.batch(part, pad_id=self.pad_id)) for part in parts])

    def gradient(self, place: Place, suffix: Tensor) -> Tensor:
        """d objective / d one-hot token, [L, V], at `suffix` (int64 [L]), by which replacements are proposed.

        Zou et al. 2023, equation 4 (HotFlip, Ebrahimi et al. 2018).
        """
        batch = place.batch(suffix[None], pad_id=self.pad_id)
        embedding = architecture_of(self.model).embedding(self.model)
        (table,) = embedding.parameters()  # [V, d_model]
        leaves: list[Tensor] = []

        def as_leaf(_: nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            leaves.append(embedded.detach().requires_grad_())
            return leaves[0]

        handle = embedding.register_forward_hook(as_leaf)
        try:
            with torch.enable_grad():
                value = self.value(self.model, batch).sum()
        finally:
            handle.remove()
        (slopes,) = torch.autograd.grad(value, leaves[0])  # [2, T, d_model]
        first = len(place.before)
        by_token: Tensor = slopes[:, first : first + len(suffix)].sum(0) @ table.detach().T  # [L, V]
        return by_token
