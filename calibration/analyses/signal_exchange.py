"""A direction's component exchanged between benign and harmful runs: does it open and close the gate, and by which way?

At the tokens that line up, x <- x + (s' - s) d, with s = x . d of the run itself and s' of the other one. The control
moves as far along random directions. What is left of the effect with all later attention outputs frozen at their values
in the unmoved run goes through MLPs or straight through the residual stream, and so on (path patching: Wang et al.
2022; Goldowsky-Dill et al. 2023). Of a frozen MLP the gate's own neurons are left free, for they are what is watched.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from calibration.analyses.gate_activity import GateActivity, Opening
from calibration.runs.interventions import Mediator, patching, recording
from calibration.runs.resume import LateRun
from guard.families.architectures import architecture_of

Frozen = Literal["nothing", "attention", "mlp", "both"]
FROZEN: tuple[Frozen, ...] = ("nothing", "attention", "mlp", "both")
STEPS = 5

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Effects:
    """Effects of an exchange on each pair, [pairs] each: what the reference run gains, what the harmful one loses."""

    gate_into_reference: Tensor
    gate_into_harmful: Tensor
    outcome_into_reference: Tensor
    outcome_into_harmful: Tensor

    def stacked(self) -> Tensor:
        """The four, in their order, [pairs, 4] float64."""
        parts = (
            self.gate_into_reference, self.gate_into_harmful, self.outcome_into_reference, self.outcome_into_harmful,
        )  # fmt: skip
        return torch.stack(parts, 1).double().cpu()


@dataclass(frozen=True)
class SignalRuns:
    """A batch of pairs as its two runs enter one layer, and how the gate is read in them."""

    activity: GateActivity
    scale: Opening
    reference: LateRun
    harmful: LateRun

    def advanced(self) -> "SignalRuns":
        """The same pairs one layer further on."""
        with torch.no_grad():
            return replace(self, reference=self.reference.advanced(), harmful=self.harmful.advanced())

    @cached_property
    def _unmoved(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Y and the gate's opening in both runs as they are."""
        reference, harmful = (self._of(self.activity.read(run)) for run in (self.reference, self.harmful))
        return reference, harmful

    def _of(self, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return read[0], self.scale.of(read[1])

    def _apart(self, direction: Tensor) -> Tensor:
        """How far apart the components are, s* - s at the tokens that line up, [2B, T_edited]."""
        edited = self.harmful.batch.edited
        difference = self.harmful.residual[:, edited] - self.reference.residual[:, edited]
        return difference @ direction.to(difference)

    def _read(self, run: LateRun, moved: Tensor, frozen: Frozen) -> tuple[Tensor, Tensor]:
        """Y and the gate's opening, [B] each, of `run` with its stream at the tokens that line up moved."""
        stream = run.residual.clone()
        stream[:, run.batch.edited] += moved
        held = nullcontext() if frozen == "nothing" else patching(run.model, run.batch, self._values(run, frozen))
        with held:
            return self._of(self.activity.read(replace(run, residual=stream)))

    def _values(self, run: LateRun, frozen: Frozen) -> dict[Mediator, Tensor]:
        with recording(run.model, run.batch, self._mediators(run, frozen)) as values:
            run.readout_logits()
        return dict(values)

    def _mediators(self, run: LateRun, frozen: Frozen) -> list[Mediator]:
        """What lies between the run's first layer and the gate's last: attention, MLP neurons outside the gate."""
        last = max(self.activity.neurons)
        found = []
        if frozen in ("attention", "both"):
            found += [Mediator("attention", layer) for layer in range(run.first_layer, last + 1)]
        if frozen in ("mlp", "both"):
            architecture = architecture_of(run.model)
            layers = architecture.decoder_layers(run.model)
            for layer in range(run.first_layer, last):
                other = torch.ones(architecture.neurons_of(layers[layer]), dtype=torch.bool)
                if layer in self.activity.neurons:
                    other[self.activity.neurons[layer]] = False
                found.append(Mediator("neurons", layer, neurons=tuple(other.nonzero()[:, 0].tolist())))
        return found

    @torch.inference_mode()
    def exchange(self, direction: Tensor, along: Tensor | None = None, frozen: Frozen = "nothing") -> Effects:
        """The effects of exchanging the component along `direction` (unit, [d_model]).

        With `along` (unit, [d_model]) the runs are moved as far along that one instead.
        """
        into = (direction if along is None else along).to(self.harmful.residual)
        moved = self._apart(direction)[..., None] * into  # [2B, T_edited, d_model]
        (y, gate), (y_star, gate_star) = self._unmoved
        y_gain, gate_gain = self._read(self.reference, moved, frozen)
        y_loss, gate_loss = self._read(self.harmful, -moved, frozen)
        return Effects(gate_gain - gate, gate_star - gate_loss, y_gain - y, y_star - y_loss)

    def gradient(self) -> Tensor:
        """The gradient of the gate's opening by the stream at the last prompt token, summed over requests, [d_model].

        Averaged over both runs and over the way from the one's stream to the other's (integrated gradients,
        Sundararajan et al. 2017): at either end the gate may be shut, or wide open, and tell nothing of what opens it.
        """
        edited, decisive = self.harmful.batch.edited, self.harmful.batch.prompt_width - 1
        total = torch.zeros(self.harmful.residual.shape[-1])
        for run in (self.reference, self.harmful):
            for step in range(STEPS):
                stream = run.residual.clone()
                ends = (self.reference.residual[:, edited], self.harmful.residual[:, edited])
                stream[:, edited] = torch.lerp(*ends, (step + 0.5) / STEPS)
                stream.requires_grad_()
                with torch.enable_grad():
                    _, written = self.activity.read(replace(run, residual=stream))
                    open_by = self.scale.of(written).sum()
                (gradient,) = torch.autograd.grad(open_by, stream)
                total += gradient[:, decisive].float().sum(0).cpu() / (2 * STEPS)
        return total


def what_the_gate_reads(runs: Sequence[SignalRuns]) -> Tensor:
    """The unit direction [d_model] along which the stream at the last prompt token opens the gate most."""
    gradient = torch.stack([run.gradient() for run in runs]).sum(0)
    found: Tensor = gradient / gradient.norm().clamp(min=1e-12)
    return found


def exchanged(
    runs: Sequence[SignalRuns], direction: Tensor, along: Tensor | None = None, frozen: Frozen = "nothing"
) -> Tensor:
    """`SignalRuns.exchange` over batches of pairs: [pairs, 4] float64, in the order of `Effects`."""
    return torch.cat([run.exchange(direction, along, frozen).stacked() for run in runs])


def random_directions(d_model: int, count: int, seed: int) -> list[Tensor]:
    """`count` random unit directions [d_model]."""
    drawn = torch.randn(count, d_model, generator=torch.Generator().manual_seed(seed))
    return list(drawn / drawn.norm(dim=1, keepdim=True))
