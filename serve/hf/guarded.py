"""A model with its guard, as one thing that can be asked whether the guard still acts.

Installation proves that an edit is live. While it serves, that is proved again: that the guarding modules stand where
they were put (cheap, before every batch), that they hold the spec's own numbers, and that they act (a few short passes,
at an interval). Everything here runs in the thread that runs the model: kernels then choose the same order of sums each
time, and the plain logits of the first moment can be compared bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from guard import EditSpec, install
from guard.errors import EditNotAppliedError
from guard.families.architectures import architecture_of
from guard.hf import Installation
from guard.runtime import selftest
from guard.runtime.buffers import EditBuffers, Float32Buffers
from guard.runtime.trigger import TriggerReadout


@dataclass(frozen=True)
class GuardedModel:
    """`model` with `spec` installed; `plain` are its probe logits from before, float32 [2, 7, vocabulary]."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: EditSpec
    installation: Installation
    plain: Tensor

    @classmethod
    def install(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: EditSpec, *, allow_refuted: bool = False
    ) -> "GuardedModel":
        """Guard `model`; raises what guard.install raises."""
        plain = selftest.probe_logits(model)
        installation = install(model, spec, tokenizer=tokenizer, allow_refuted=allow_refuted)
        return cls(model, tokenizer, spec, installation, plain)

    def exchanged(self, spec: EditSpec, *, allow_refuted: bool = False) -> "GuardedModel":
        """The same model guarded with `spec`; what guard.install raises is raised, and this guard is there again."""
        with self.installation.set_aside():
            installation = install(self.model, spec, tokenizer=self.tokenizer, allow_refuted=allow_refuted)
        # the plain logits of the start stay the measure, lest a model that was changed since passes for itself
        return GuardedModel(self.model, self.tokenizer, spec, installation, self.plain)

    def check_in_place(self) -> None:
        """EditNotAppliedError unless every guarding module stands where it was installed."""
        architecture = architecture_of(self.model)
        layers = architecture.decoder_layers(self.model)
        places = [architecture.down(layers[edit.layer]) for edit in self.spec.layers]
        guarded = self.installation.guarded
        if len(guarded) != len(places) or any(
            getattr(parent, name) is not wrapper for (parent, name), wrapper in zip(places, guarded, strict=True)
        ):
            raise EditNotAppliedError("a guarded layer's module was replaced after installation.")
        if self.spec.trigger is not None:
            parent, name = architecture.entry(layers[self.spec.trigger.layer])
            if getattr(getattr(parent, name), "readout", None) is not self.installation.readout:
                raise EditNotAppliedError("the trigger's module was replaced after installation.")

    def self_test(self) -> None:
        """Raise EditNotAppliedError or SelfTestError unless the spec, and nothing else, acts on the model right now."""
        self.check_in_place()
        self._check_numbers()
        selftest.check(self.model, self.installation.guarded, self.installation.readout, self.plain)

    def _check_numbers(self) -> None:
        for wrapper, edit in zip(self.installation.guarded, self.spec.layers, strict=True):
            device = wrapper.edit.neurons.device
            _check_same(wrapper.edit, EditBuffers.from_edit(edit, device, wrapper.edit.d_ff), f"layer {edit.layer}")
        readout = self.installation.readout
        if self.spec.trigger is not None and readout is not None:
            _check_same(readout, TriggerReadout(self.spec.trigger, readout.direction.device), "the trigger")


def _check_same(installed: Float32Buffers, fresh: Float32Buffers, where: str) -> None:
    here, spec = dict(installed.named_buffers()), dict(fresh.named_buffers())
    if here.keys() != spec.keys() or any(not torch.equal(here[name], spec[name]) for name in spec):
        raise EditNotAppliedError(f"the numbers of {where} are no longer the spec's.")
