"""The edit spec: a few clamped neurons, the model they belong to, and the evidence for them, in one small file.

Everything is checked where a spec is made, so that code which is handed one need not check again. The parts are defined
in guard/spec/edit.py and guard/spec/evidence.py, and all of them can be had from here.
"""

import hashlib
from os import PathLike
from typing import Literal, Self

from pydantic import model_validator
from torch import Tensor

from guard.spec import header, store
from guard.spec.claim import Claim
from guard.spec.edit import LayerEdit, ModelIdentity, Provenance, Trigger
from guard.spec.evidence import (
    Analyses,
    BenignRates,
    Evidence,
    HeldOut,
    LayerClips,
    MediatorEffect,
    NeuronEvidence,
    SetSize,
    Trial,
    Verdict,
)
from guard.spec.measures import Estimate, Frozen, OffOn

__all__ = [
    "Analyses",
    "BenignRates",
    "Claim",
    "EditSpec",
    "Estimate",
    "Evidence",
    "HeldOut",
    "LayerClips",
    "LayerEdit",
    "MediatorEffect",
    "ModelIdentity",
    "NeuronEvidence",
    "OffOn",
    "Provenance",
    "SetSize",
    "Trial",
    "Trigger",
    "Verdict",
]


class EditSpec(Frozen):
    """An edit of one model: `layers` sorted, active where `trigger` says so (everywhere if None), with its evidence.

    An effective one edits at least one layer; a refuted one may edit none, where nothing was found.
    """

    schema_version: Literal[1]
    model: ModelIdentity
    layers: tuple[LayerEdit, ...]
    trigger: Trigger | None
    provenance: Provenance
    evidence: Evidence

    @model_validator(mode="after")
    def _edits_fit(self) -> Self:
        indices = [edit.layer for edit in self.layers]
        if indices != sorted(set(indices)):
            raise ValueError(f"the guarded layers {indices} are not sorted, each once")
        if self.evidence.verdict.outcome == "effective" and not indices:
            raise ValueError("the verdict is effective, but no layer is edited")
        for edit in self.layers:
            self._in_model(edit.layer, edit.neurons[-1])
        for neuron in self.evidence.neurons:
            self._in_model(neuron.layer, neuron.neuron)
        for mediator in self.evidence.mediators:
            self._in_model(mediator.layer, 0)
        return self

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        rates = self.evidence.held_out.benign_rates
        if rates is None:
            return self
        if [clips.layer for clips in rates.clips] != [edit.layer for edit in self.layers]:
            raise ValueError("the benign rates are not those of the guarded layers")
        if (rates.triggered is None) != (self.trigger is None):
            raise ValueError("the benign rates tell of a trigger that the spec does not have, or leave out its own")
        return self

    @model_validator(mode="after")
    def _trigger_fits(self) -> Self:
        if self.trigger is None:
            return self
        self._in_model(self.trigger.layer, 0)
        if self.layers and self.trigger.layer > self.layers[0].layer:
            raise ValueError(
                f"the trigger reads layer {self.trigger.layer}, after the first guarded layer {self.layers[0].layer}"
            )
        if len(self.trigger.direction) != self.model.d_model:
            raise ValueError(
                f"the trigger's direction has {len(self.trigger.direction)} entries, the model's d_model is "
                f"{self.model.d_model}"
            )
        return self

    def _in_model(self, layer: int, neuron: int) -> None:
        if layer >= self.model.num_hidden_layers:
            raise ValueError(f"layer {layer} is named, but the model has {self.model.num_hidden_layers} layers")
        if neuron >= self.model.d_ff:
            raise ValueError(f"neuron {neuron} of layer {layer} is named, but the model's d_ff is {self.model.d_ff}")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The spec in the file at `path`; SpecError, naming what is wrong, for any file that is not a valid one."""
        return cls.decode(store.read_bytes(path), path)

    @classmethod
    def decode(cls, contents: bytes, path: str | PathLike[str]) -> Self:
        """The spec that `contents` of a file are; `path` is for the SpecError alone."""
        parts = header.parts(path, *store.decode(contents, path))
        with header.refusing(path):
            return cls.model_validate(parts)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the spec to `path`, whole or not at all; SpecError where it cannot be written."""
        store.write(path, *self._stored())

    @property
    def digest(self) -> str:
        """Sha256 of the content, in hex: the same for equal specs, however their files are laid out."""
        text, tensors = self._stored()
        content = hashlib.sha256(text.encode())
        for name in sorted(tensors):
            content.update(tensors[name].numpy().tobytes())
        return content.hexdigest()

    def _stored(self) -> tuple[str, dict[str, Tensor]]:
        return header.stored(
            schema_version=self.schema_version,
            model=self.model,
            layers=self.layers,
            trigger=self.trigger,
            provenance=self.provenance,
            evidence=self.evidence,
        )
