"""Another spec for a model that vLLM has compiled and captured: its numbers, written over those that the graphs read.

Graphs hold which layers are guarded, and the shape and place of every buffer, and nothing of what is in them. So a spec
of the same layers, with as many neurons on every rank, takes over without a new graph; any other takes a new start.
"""

from dataclasses import replace

from guard.errors import ModelMismatchError, SpecError
from guard.runtime.trigger import TriggerReadout
from guard.spec.edit_spec import EditSpec
from guard.vllm.install import EngineGuard

RESTART = "start the server again to serve it."


def check_fits(guard: EngineGuard, held: EditSpec, new: EditSpec) -> None:
    """Raise unless `new` can take the place of `held`, which was verified on this model and made `guard`.

    SpecError, with the reason, where other graphs would be needed; ModelMismatchError for a spec of another model.
    """
    _check_same("layers", [edit.layer for edit in held.layers], [edit.layer for edit in new.layers])
    triggers = [None if spec.trigger is None else spec.trigger.layer for spec in (held, new)]
    _check_same("the trigger's layer", *triggers)
    if new.model != held.model:
        raise ModelMismatchError("the new spec was made on another model or with another tokenizer than the old one.")
    edits = {edit.layer: edit for edit in new.layers}
    for layer in guard.layers:
        own, fresh = layer.own, replace(layer, edit=edits[layer.edit.layer]).made_anew()
        where = f"the number of neurons in layer {layer.edit.layer}, rank {layer.share.rank}"
        _check_same(where, own.neurons.numel(), fresh.neurons.numel())
        if fresh.tensors().rescales and not own.tensors().rescales:
            raise SpecError(
                f"the new spec scales neurons of layer {layer.edit.layer}, which the old one only bounds: {RESTART}"
            )


def exchanged(guard: EngineGuard, spec: EditSpec) -> EngineGuard:
    """`guard` with the numbers of `spec`, which `check_fits` has let pass, in the very same tensors.

    Not while a pass runs. `guard` itself is not to be used any more.
    """
    edits = {edit.layer: edit for edit in spec.layers}
    layers = tuple(replace(layer, edit=edits[layer.edit.layer]) for layer in guard.layers)
    for layer in layers:
        fresh = layer.made_anew()
        layer.own.neurons.copy_(fresh.neurons)
        layer.own.assign(fresh.scale, fresh.lower, fresh.upper)  # every form, from the neurons
    if guard.trigger is not None and spec.trigger is not None:
        guard.trigger.trigger = spec.trigger
        live = guard.trigger.readout
        for name, values in TriggerReadout(spec.trigger, live.threshold.device).named_buffers():
            live.get_buffer(name).copy_(values)
    return replace(guard, layers=layers)


def _check_same(what: str, held: object, new: object) -> None:
    if held != new:
        raise SpecError(f"{what}: {held} in the running graphs, {new} in the new spec; {RESTART}")
