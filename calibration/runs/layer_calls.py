"""Call a decoder layer as its model does, and meet what passes through it in one shape, whatever the family.

Families differ in what they give a layer by position and what by name, in whether it returns a tuple, and OPT flattens
its tokens before the MLP. Everything in calibration that runs a layer again, or hooks a module inside one, goes through
here, so that nothing else has to know.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from guard.errors import EditNotAppliedError, UnsupportedModelError

STREAM = "hidden_states"
# What forward passes call the keys and values of earlier tokens: it depends on the family and on transformers' version.
CACHES = ("cache", "past_key_values", "layer_past")

Change = Callable[[Tensor], Tensor | None]


def split_call(
    layer: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """A call of `layer` as the residual stream [rows, T, d_model] that enters it, and its other arguments by name."""
    bound = inspect.signature(layer.forward).bind(*positional, **named)
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments.pop(STREAM), arguments


def cache_name(module: nn.Module) -> str:
    """What the forward pass of a model or of a decoder layer calls its cache; UnsupportedModelError if it has none."""
    parameters = inspect.signature(module.forward).parameters
    found = next((name for name in CACHES if name in parameters), None)
    if found is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no argument for earlier tokens by a known name ({', '.join(CACHES)}): "
            "use a version of transformers that pyproject.toml allows."
        )
    return found


def tokens_before(layer: nn.Module, arguments: Mapping[str, Any]) -> int:
    """How many tokens came before those that enter `layer`, the model's first, in a call with these `arguments`.

    0 without a cache. EditNotAppliedError for a cache that does not hold every row's tokens at the same places.
    """
    cache_name(layer)  # else a cache by another name would count as none
    given = [arguments[name] for name in CACHES if arguments.get(name) is not None]
    if len(given) > 1 or not all(isinstance(cache, Cache) for cache in given):
        kinds = " and ".join(type(cache).__name__ for cache in given)
        raise EditNotAppliedError(
            f"{kinds} does not say how many tokens came before: give the model one cache of transformers, or none."
        )
    return int(given[0].get_seq_length()) if given else 0


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `change` applied to it, or to its members where it is a tuple; what is no tensor stays."""
    if isinstance(value, tuple):
        return tuple(each_tensor(member, change) for member in value)
    return change(value) if isinstance(value, Tensor) else value


def place_of(module: nn.Module) -> torch.device:
    """The device of a module's weights: layers of a model that is spread over several devices differ in it."""
    return next(chain(module.parameters(), module.buffers())).device


def leaving(layer: nn.Module, stream: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The residual stream that leaves `layer`, [rows, T, d_model], given the one that enters it and the rest."""
    output = layer(**{STREAM: stream}, **arguments)
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def calls(layer: nn.Module, seen: Callable[[Tensor, dict[str, Any]], None]) -> Iterator[None]:
    """Within the block, `seen` is told of each call of `layer`: the stream that enters it, its other arguments.

    All of it on the layer's own device, whichever device the layer before it is on.
    """
    place = place_of(layer)

    def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        stream, arguments = split_call(layer, positional, named)
        here = {name: each_tensor(value, lambda tensor: tensor.to(place)) for name, value in arguments.items()}
        seen(stream.to(place), here)

    with _removed(layer.register_forward_pre_hook(hook, with_kwargs=True)):
        yield


class _Tokens:
    """The tokens [rows, T] that entered a layer last, to give flattened values [rows * T, width] their shape back."""

    def __init__(self) -> None:
        self.shape = torch.Size()

    def remember(self, _: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        stream: Tensor = positional[0] if positional else named[STREAM]
        self.shape = stream.shape[:-1]

    def through(self, change: Change, values: Tensor) -> Tensor | None:
        if values.dim() == len(self.shape) + 1:
            return change(values)
        changed = change(values.reshape(*self.shape, values.shape[-1]))
        return None if changed is None else changed.reshape(values.shape)


@contextmanager
def changed_input(layer: nn.Module, module: nn.Module, change: Change) -> Iterator[None]:
    """Within the block, the input [rows, T, width] of `module`, inside `layer`, passes through `change`.

    Where `change` returns None the input stays as it is.
    """
    tokens = _Tokens()

    def hook(_: nn.Module, positional: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = tokens.through(change, positional[0])
        return None if changed is None else (changed, *positional[1:])

    remembered = layer.register_forward_pre_hook(tokens.remember, with_kwargs=True)
    with _removed(remembered), _removed(module.register_forward_pre_hook(hook)):
        yield


@contextmanager
def changed_output(layer: nn.Module, module: nn.Module, change: Change) -> Iterator[None]:
    """Within the block, the output [rows, T, width] of `module` passes through `change`, or the first if it gives many.

    `module` is `layer` itself or inside it. Where `change` returns None the output stays as it is.
    """
    tokens = _Tokens()

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        changed = tokens.through(change, output[0] if isinstance(output, tuple) else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    remembered = layer.register_forward_pre_hook(tokens.remember, with_kwargs=True)
    with _removed(remembered), _removed(module.register_forward_hook(hook)):
        yield


@contextmanager
def _removed(handle: RemovableHandle) -> Iterator[None]:
    """Within the block the hook is there; afterwards it is not."""
    try:
        yield
    finally:
        handle.remove()
