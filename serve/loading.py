"""A model from disk or the hub, with its guard on, or one sentence that says why not."""

from guard import EditSpec
from guard.loading import load_model
from guard.spec.permission import require_servable
from serve.hf.guarded import GuardedModel
from serve.settings import Settings
from serve.signing import require_signature


def load_guarded(settings: Settings) -> GuardedModel:
    """The model that `settings` names, guarded with their spec; every reason against it is a NeuronGuardError."""
    spec = load_spec(settings)  # before the model, which may take minutes
    model, tokenizer = load_model(settings.model, device=settings.device, dtype=settings.dtype)
    return GuardedModel.install(model, tokenizer, spec, allow_refuted=settings.allow_refuted)


def reload_guarded(guarded: GuardedModel, settings: Settings) -> GuardedModel:
    """The model with the spec that is in the file by now; every reason against it is a NeuronGuardError, and the guard
    is then as it was.
    """
    return guarded.exchanged(load_spec(settings), allow_refuted=settings.allow_refuted)


def load_spec(settings: Settings) -> EditSpec:
    """The spec that `settings` name, if they let it serve; every reason against it is a NeuronGuardError."""
    key = settings.require_signature
    spec = EditSpec.load(settings.spec) if key is None else require_signature(settings.spec, key)
    require_servable(
        spec,
        allow_refuted=settings.allow_refuted,
        name=f"the spec {settings.spec}",
        remedy="pass --allow-refuted to serve it",
    )
    return spec
