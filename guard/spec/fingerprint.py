"""Which model a spec belongs to: architecture, shape, tokenizer, chat template, and the weights of the guarded MLPs.

A neuron's index means nothing on another model, and an edit of the wrong neuron looks like one that works. Only the
MLPs of the guarded layers are hashed, since hashing a whole large model would take longer than loading it: a change
elsewhere is not noticed. Weights are hashed as float32, so that a bfloat16 checkpoint has one digest whether it is
loaded as bfloat16 or as float32; loading a float32 checkpoint as bfloat16 rounds its weights, and is another model.
So is a quantised one, whose neurons have other values: there it is the stored integers and all that quantisation keeps
with them (scales, zero points, code books) that is hashed. An installed guard leaves no trace in the digest.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from guard.errors import ModelMismatchError, UnsupportedModelError
from guard.families.architectures import Architecture, architecture_of
from guard.families.stored_weights import stored_tensors
from guard.runtime.wrappers import Wrapper
from guard.spec.edit_spec import EditSpec, ModelIdentity

SHAPE = ("model_type", "num_hidden_layers", "d_model", "d_ff", "vocab_size")
# Set by the last call that padded or truncated; says nothing about which tokens a text has.
CALL_SETTINGS = ("padding", "truncation")


class Tokenizer(Protocol):
    """What a transformers tokenizer has, whatever is behind it."""

    def get_vocab(self) -> dict[str, int]:
        """Each token and its id."""
        ...


def fingerprint(model: nn.Module, layers: Iterable[int], tokenizer: Tokenizer | None = None) -> ModelIdentity:
    """The identity of `model` for a spec that guards `layers`; without a `tokenizer` it is bound to none.

    Raises UnsupportedModelError (unknown type, offloaded weights) or ModelMismatchError (no such layer).
    """
    indices = sorted(set(layers))
    shape = _shape(model)
    if indices and not 0 <= indices[0] <= indices[-1] < shape["num_hidden_layers"]:
        raise ModelMismatchError(
            f"layers {indices} are to be guarded, but the model has layers 0 to {shape['num_hidden_layers'] - 1}."
        )
    return ModelIdentity(
        model_type=architecture_of(model).model_type,
        **shape,
        tokenizer_digest=None if tokenizer is None else tokenizer_digest(tokenizer),
        chat_template_digest=None if tokenizer is None else chat_template_digest(tokenizer),
        mlp_digest=mlp_digest(model, indices),
    )


def verify(spec: EditSpec, model: nn.Module, tokenizer: Tokenizer | None = None) -> None:
    """Raise ModelMismatchError, naming each difference, unless `spec` was made on `model`.

    The tokenizer and its chat template are compared where there is a `tokenizer` both here and in the spec.
    """
    here: dict[str, object] = {"model_type": architecture_of(model).model_type, **_shape(model)}
    differences = [
        f"{name} is {here[name]} here and {getattr(spec.model, name)} in the spec"
        for name in SHAPE
        if here[name] != getattr(spec.model, name)
    ]
    layers = [edit.layer for edit in spec.layers]
    if not differences and mlp_digest(model, layers) != spec.model.mlp_digest:
        differences.append(f"the MLP weights of layers {layers} differ")
    if tokenizer is not None and spec.model.tokenizer_digest is not None:
        if tokenizer_digest(tokenizer) != spec.model.tokenizer_digest:
            differences.append("the tokenizer differs")
        if chat_template_digest(tokenizer) != spec.model.chat_template_digest:
            differences.append("the chat template differs")
    if differences:
        raise ModelMismatchError(
            f"the spec was made on another model: {'; '.join(differences)}; "
            "load the model that it was made on, or calibrate on this one."
        )


@torch.no_grad()  # torchao's tensors cannot be taken apart in inference mode
def mlp_digest(model: nn.Module, layers: Iterable[int]) -> str:
    """Sha256, in hex, over name, shape and value of everything that the MLP projections of `layers` store.

    Floating-point values count as float32, whatever they are stored as. A quantised projection is its integers as they
    are stored, and the scales and tables that belong to them. Raises UnsupportedModelError for weights that are not
    loaded.
    """
    architecture, digest = architecture_of(model), hashlib.sha256()
    decoder_layers = architecture.decoder_layers(model)
    for index in sorted(set(layers)):
        for name, stored in _mlp_weights(architecture, decoder_layers[index]):
            if stored.is_meta:
                raise UnsupportedModelError(
                    f"the MLP weights of layer {index} are offloaded; load the model whole onto its devices."
                )
            value = stored.float() if stored.is_floating_point() else stored
            kind = str(value.dtype).removeprefix("torch.")
            digest.update(f"layers.{index}.{name} {tuple(value.shape)} {kind}\n".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Sha256, in hex, of everything that decides which tokens a text has.

    That is what the `tokenizers` library writes of itself (vocabulary, merges, normaliser, added tokens); of one
    written in Python, its class and vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _digest([type(tokenizer).__name__, tokenizer.get_vocab()])
    description = json.loads(backend.to_str())
    return _digest({name: value for name, value in description.items() if name not in CALL_SETTINGS})


def chat_template_digest(tokenizer: Tokenizer) -> str | None:
    """Sha256, in hex, of the chat template, or of all of them by name; None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return None if template is None else _digest(template)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shape(model: nn.Module) -> dict[str, int]:
    architecture = architecture_of(model)
    return {
        "num_hidden_layers": architecture.num_layers(model),
        "d_model": architecture.d_model(model),
        "d_ff": architecture.d_ff(model),
        "vocab_size": next(architecture.embedding(model).parameters()).shape[0],
    }


def _mlp_weights(architecture: Architecture, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a layer's MLP projections store, by name, as it is beneath an installed guard."""
    _, down_name = architecture.down(layer)
    projections = {**architecture.input_projections(layer), down_name: architecture.down_projection(layer)}
    for name, projection in projections.items():
        own = projection.original if isinstance(projection, Wrapper) else projection
        yield from ((f"{name}.{part}", stored) for part, stored in stored_tensors(own))
