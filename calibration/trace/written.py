"""The tokens that neurons write: their columns of the down projection, read through the unembedding.

A direct reading, as if nothing came after the neuron: exact for the last layer, a hint for earlier ones (Geva et al.
2022). What the norms divide by is taken from the run at the last prompt token.
"""

import torch
from torch import Tensor

from calibration.effects.exact.down_columns import down_weight
from calibration.effects.exact.final_norm import Norm, final_norm_of, norm_of
from calibration.trace.document import Written
from calibration.trace.gradients import Gradients
from calibration.trace.subject import Subject, visible_tokens
from guard.families.architectures import architecture_of

TOKENS_SHOWN = 5

Tokens = tuple[Written, ...]


class Writer:
    """The unembedding of one model, as neurons on one prompt see it."""

    def __init__(self, subject: Subject, gradients: Gradients) -> None:
        self.subject, self.gradients = subject, gradients
        self.architecture = architecture_of(subject.model)
        self.layers = self.architecture.decoder_layers(subject.model)
        self.final = final_norm_of(subject.model, self.architecture, torch.float32)

    @torch.inference_mode()
    def logits(self, layer: int, neurons: list[int], activations: Tensor) -> Tensor:
        """What neurons of a layer at `activations` [n] add to each token's logit, [n, V]; no soft cap, no constants."""
        module = self.layers[layer]
        dtype = self.gradients.values["neurons", layer].dtype
        weight = down_weight(self.architecture.down_projection(module), torch.float32, dtype)
        columns = weight[:, neurons].T  # [n, d_model]
        after = self.architecture.post_mlp_norm(module)
        if after is not None:
            norm = norm_of(self.architecture, after, torch.float32)
            columns = norm.centred(columns) * norm.weight / self._root_mean_square(norm, self._stream("mlp", layer))
        columns = self.final.norm.centred(columns * self.architecture.residual_multiplier(self.subject.model))
        size = self._root_mean_square(self.final.norm, self._stream("layer", len(self.layers) - 1))
        return (columns * (activations[:, None] / size)) @ self.final.unembedding.T

    def tokens(self, layer: int, neurons: list[int], activations: Tensor) -> list[tuple[Tokens, Tokens]]:
        """For each neuron at its activation, the tokens whose logits it raises most and lowers most."""
        logits = self.logits(layer, neurons, activations)
        count = min(TOKENS_SHOWN, logits.shape[1])
        promoted, demoted = logits.topk(count), (-logits).topk(count)
        return [
            (
                self._named(promoted.indices[place], promoted.values[place]),
                self._named(demoted.indices[place], -demoted.values[place]),
            )
            for place in range(len(neurons))
        ]

    def _named(self, ids: Tensor, logits: Tensor) -> Tokens:
        texts = visible_tokens(self.subject.tokenizer, ids.tolist())
        return tuple(Written(token=text, logit=logit) for text, logit in zip(texts, logits.tolist(), strict=True))

    def _stream(self, kind: str, layer: int) -> Tensor:
        """What left a layer, or its MLP, at the last prompt token: [d_model]."""
        values = self.gradients.values["mlp" if kind == "mlp" else "layer", layer]
        return values[0, self.subject.batch.prompt_width - 1].float()

    def _root_mean_square(self, norm: Norm, stream: Tensor) -> Tensor:
        return norm.mean_square(norm.centred(stream)).sqrt()
