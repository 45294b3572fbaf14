"""How far a gate is open in a run: its neurons' activity on one scale, from benign (0) to harmful requests (1).

A gate's neurons differ in size and sign, so each counts by what it writes into the residual stream, and along the
change that harm makes in it; so the scale does not depend on how a model shares a factor between a neuron and its
weights. It trades away which neuron moved: one number says how much of harm's change in the gate is there.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.effects.exact.down_columns import down_weight
from calibration.effects.outcome import outcome
from calibration.runs.layer_calls import changed_input
from calibration.runs.resume import LateRun
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import LayerEdit


@dataclass(frozen=True)
class GateActivity:
    """A gate's neurons, `neurons[layer]` int64 [k], and the norm of what each writes per unit, `sizes[layer]` [k]."""

    model: nn.Module
    neurons: dict[int, Tensor]
    sizes: dict[int, Tensor]

    def read(self, run: LateRun) -> tuple[Tensor, Tensor]:
        """Y of each request, [B] nats, and what each neuron writes, [B, K], with whatever is installed on `run` now.

        What is written is averaged over the tokens that line up, in both rows of a request. Gradients flow.
        """
        architecture = architecture_of(self.model)
        layers, batch = architecture.decoder_layers(self.model), run.batch
        real = batch.reading.sum(1)
        weight = batch.reading / (real[: batch.size] + real[batch.size :]).repeat(2)[:, None]  # [2B, T_edited]
        written: dict[int, Tensor] = {}

        def keep(index: int) -> Callable[[Tensor], None]:
            def seen(h: Tensor) -> None:
                own = h[:, batch.edited][..., self.neurons[index].to(h.device)]  # [2B, T_edited, k]
                mean = (own * weight.to(own)[..., None]).sum(1) * self.sizes[index].to(own)  # [2B, k]
                written[index] = mean[: batch.size] + mean[batch.size :]

            return seen

        with ExitStack() as stack:
            for index in self.neurons:
                down = architecture.down_projection(layers[index])
                stack.enter_context(changed_input(layers[index], down, keep(index)))
            y = outcome(run.readout_logits(), batch)
        return y, torch.cat([written[index].to(y.device) for index in self.neurons], dim=1)


def gate_activity(model: nn.Module, edits: Sequence[LayerEdit]) -> GateActivity:
    """The activity of the neurons that `edits` name."""
    architecture = architecture_of(model)
    layers = architecture.decoder_layers(model)
    neurons, sizes = {}, {}
    for edit in sorted(edits, key=lambda edit: edit.layer):
        chosen = torch.tensor(edit.neurons)
        weight = down_weight(architecture.down_projection(layers[edit.layer]), torch.float32, torch.float32)
        neurons[edit.layer] = chosen
        sizes[edit.layer] = weight[:, chosen.to(weight.device)].norm(dim=0).cpu()
    return GateActivity(model, neurons, sizes)


@dataclass(frozen=True)
class Opening:
    """The scale: `closed` [K] is what the gate writes on benign requests on average, `change` [K] what harm adds."""

    closed: Tensor
    change: Tensor

    def of(self, written: Tensor) -> Tensor:
        """How far the gate is open, [B], from what it writes, [B, K]: 0 as on benign requests, 1 as on harmful ones."""
        change = self.change.to(written)
        share: Tensor = ((written - self.closed.to(written)) @ change) / change.square().sum().clamp(min=1e-12)
        return share


def opening(benign: Tensor, harmful: Tensor) -> Opening:
    """The scale on which `benign` [N, K] is 0 and `harmful` [N, K] is 1 on average."""
    return Opening(benign.mean(0), harmful.mean(0) - benign.mean(0))
