"""What stands between the residual stream and the logits, as formulas that say how logits move with the stream.

Each family's norm is r -> g * x / rms(x) + b, where x is the stream r, or r less its mean for a LayerNorm, and

    rms^2 = |x|^2 / d_model + eps,        z_v = s (u_v . norm(r) + c_v),        logit_v = cap tanh(z_v / cap)

with the bias c, the multiplier s and the soft cap each in some families only. So z_v is one linear map of x / rms(x),
with the rows s g * u_v, and an *offset* s (u_v . b + c_v) that the norm does not rescale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.errors import UnsupportedModelError
from guard.families.architectures import Architecture


@dataclass(frozen=True)
class Norm:
    """RMSNorm, or LayerNorm where `centres`, in the dtype of the computation: `weight` and `bias` [d_model]."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    centres: bool

    def centred(self, stream: Tensor) -> Tensor:
        """x of a residual stream r, or of a displacement of one: [..., d_model]."""
        return stream - stream.mean(-1, keepdim=True) if self.centres else stream

    def mean_square(self, x: Tensor) -> Tensor:
        """rms^2 of x [..., d_model]: [...]."""
        return x.square().mean(-1) + self.epsilon

    def shrink(self, x: Tensor, along: Tensor, squared: Tensor) -> Tensor:
        """t - 1, with t = rms(x) / rms(x + e), for x [..., d_model], `along` = x.e and `squared` = |e|^2 [..., n]."""
        base = self.mean_square(x)[..., None] * x.shape[-1]
        return torch.expm1(-0.5 * torch.log1p((2 * along + squared) / base))


def norm_of(
    architecture: Architecture, module: nn.Module, dtype: torch.dtype, device: torch.device | None = None
) -> Norm:
    """The formula of one of a model's norms, on `device` (None: where it is).

    UnsupportedModelError for a module that has no weight or epsilon.
    """
    family = architecture.family
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    epsilons = [getattr(module, name, None) for name in ("variance_epsilon", "eps")]
    epsilon = next((each for each in epsilons if isinstance(each, float)), None)
    if not isinstance(weight, Tensor) or epsilon is None:
        raise UnsupportedModelError(
            f"no formula is known for the norm {type(module).__name__} of this {architecture.model_type} model: exact "
            f"effects need one with a weight and an epsilon."
        )
    scale = weight.to(device=device, dtype=dtype)
    if family.norm_weight_offset != 0.0:
        scale = scale + family.norm_weight_offset
    return Norm(
        scale, None if bias is None else bias.to(device=device, dtype=dtype), epsilon, family.norm_subtracts_mean
    )


@dataclass(frozen=True)
class Prediction:
    """What the base run predicts next at some contexts, [...].

    `log_p` [..., V]; `rescaled` [..., V]: the part of the logits that the norm multiplies with t (without a soft cap,
    up to one constant a context); with a `soft_cap`, `logits` [..., V]: z.
    """

    log_p: Tensor
    rescaled: Tensor
    logits: Tensor | None = None
    soft_cap: float | None = None

    def at(self, *index: Tensor | int) -> "Prediction":
        """The predictions at some of the contexts."""
        log_p = self.log_p[index]
        rescaled = log_p if self.rescaled is self.log_p else self.rescaled[index]
        return Prediction(log_p, rescaled, None if self.logits is None else self.logits[index], self.soft_cap)

    def capped(self, move: Tensor, logits: Tensor | None) -> Tensor:
        """How far a logit moves when z moves by `move` from `logits`: cap (tanh((z + move) / cap) - tanh(z / cap)).

        Written as a product, so that small moves keep their digits. Without a soft cap it is `move`.
        """
        if self.soft_cap is None or logits is None:
            return move
        cap = self.soft_cap
        return cap * torch.tanh(move / cap) * (1 - torch.tanh((logits + move) / cap) * torch.tanh(logits / cap))


@dataclass(frozen=True)
class FinalNorm:
    """The last norm and the unembedding, in the dtype of the computation.

    `unembedding` [V, d_model] has the norm's weight and the logits' multiplier multiplied in; `offset` is [V].
    """

    norm: Norm
    unembedding: Tensor
    offset: Tensor | None
    soft_cap: float | None

    @property
    def device(self) -> torch.device:
        """Where the logits are made."""
        return self.unembedding.device

    def predict(self, stream: Tensor) -> Prediction:
        """Next-token predictions from the residual stream [..., d_model]."""
        x = self.norm.centred(stream)
        rescaled = (x * self.norm.mean_square(x).rsqrt()[..., None]) @ self.unembedding.T  # [..., V]
        z = rescaled if self.offset is None else rescaled + self.offset
        if self.soft_cap is not None:
            log_p = (self.soft_cap * torch.tanh(z / self.soft_cap)).log_softmax(-1)
            return Prediction(log_p, rescaled, z, self.soft_cap)
        log_p = z.log_softmax(-1)
        return Prediction(log_p, log_p if self.offset is None else log_p - self.offset)


def final_norm_of(model: nn.Module, architecture: Architecture, dtype: torch.dtype) -> FinalNorm:
    """The final norm and unembedding of a model; UnsupportedModelError if they have no known formula."""
    linear, readout = architecture.unembedding(model), architecture.readout(model)
    norm = norm_of(architecture, architecture.final_norm(model), dtype, linear.weight.device)
    if not linear.weight.is_floating_point():
        raise UnsupportedModelError(
            "exact effects need the unembedding's weights: load the model with its unembedding left unquantised."
        )
    rows = linear.weight.to(dtype)
    given: Tensor | None = linear.bias
    offset = None if given is None else given.to(dtype)
    if norm.bias is not None:
        offset = rows @ norm.bias if offset is None else offset + rows @ norm.bias
    unembedding = rows * norm.weight
    if readout.scale != 1.0:
        unembedding = unembedding * readout.scale
        offset = None if offset is None else offset * readout.scale
    return FinalNorm(norm, unembedding, offset, readout.soft_cap)
