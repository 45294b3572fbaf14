"""Try edits on the late layers without installing them.

Selection and the search for bounds try many gates on the same prompts. A trial changes the input of the down
projections for as long as the `with` block lasts, by a function per layer, and gradients flow through it. It is for
calibration only: eager models, one thread. What serves is `guard.install`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from calibration.runs.layer_calls import changed_input
from guard.families.architectures import architecture_of
from guard.ops import edit_neurons
from guard.spec.edit_spec import LayerEdit

Transform = Callable[[Tensor], Tensor]


@contextmanager
def transformed(model: nn.Module, transforms: Mapping[int, Transform]) -> Iterator[None]:
    """Within the block, layer i's neurons [rows, T, d_ff] pass through `transforms[i]` before its down projection."""
    architecture = architecture_of(model)
    layers = architecture.decoder_layers(model)
    with ExitStack() as stack:
        for index, transform in transforms.items():
            layer = layers[index]
            stack.enter_context(changed_input(layer, architecture.down_projection(layer), transform))
        yield


def edit_transforms(
    edits: Sequence[LayerEdit], device: torch.device, active: Tensor | None = None
) -> dict[int, Transform]:
    """The transforms that apply `edits` where `active` (bool [rows, T], all tokens if None).

    `device` is where most of the edited layers are; a layer elsewhere has its edit brought along.
    """

    def transform(edit: LayerEdit) -> Transform:
        neurons = torch.tensor(edit.neurons, dtype=torch.int32, device=device)  # [k]
        scale, lower, upper = (
            torch.tensor(values, dtype=torch.float32, device=device) for values in (edit.scale, edit.lower, edit.upper)
        )

        def edited(h: Tensor) -> Tensor:
            place = h.device
            where = None if active is None else active.to(place)
            return edit_neurons(h, neurons.to(place), scale.to(place), lower.to(place), upper.to(place), where)

        return edited

    return {edit.layer: transform(edit) for edit in edits}
