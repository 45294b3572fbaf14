"""`python -m benchmarks.op.forms`: what each form of an edit costs, with torch.compile and without.

The figures in guard/ops/choice.py are read with it: each form as a multiple of the layer without an edit, compiled or
not as the form is, in the same rounds.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.stopwatch import ProcessorClock, sample_in_rounds
from benchmarks.op.cases import Case, Shape, clamping, make_case
from guard.errors import EditNotAppliedError
from guard.ops import EditTensors, columns, native, traced
from guard.ops.activations import activation_of

SHAPES = (Shape(3584, 1), Shape(14336, 8), Shape(3584, 256), Shape(14336, 2048))
DTYPES = (torch.float32, torch.bfloat16)
EDITED = 0.01
UNEDITED = "unedited"
SECONDS = 2.0  # for one shape, dtype, mask and edit

Form = Callable[[Tensor, Tensor, EditTensors, Tensor | None], Tensor]


def unedited(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:  # noqa: ARG001 (as the rest)
    """The layer without an edit."""
    return F.silu(gate) * up


def over_all(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    """Plain torch over all neurons."""
    return traced.edit_over_all(traced.activate("silu", gate, up), edit, active)


def by_columns(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    """Plain torch by the edited columns."""
    return traced.edit_columns(traced.activate("silu", gate, up), edit, active)


def operator(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    """The fused operator."""
    made: Tensor = torch.ops.neuron_guard.activate_edit.default("silu", gate, up, edit.tensors, active)
    return made


def operator_after(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    """The edit alone as an operator, behind what the compiler makes of the activation."""
    edited: Tensor = torch.ops.neuron_guard.edit_neurons.default(F.silu(gate) * up, edit.tensors, active)
    return edited


def in_c(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    """The code in C; EditNotAppliedError where it declines, as it does where it was not built."""
    made = native.activate_edit(activation_of("silu").value, gate, up, edit.table, active)
    if made is None:
        raise EditNotAppliedError(f"there is nothing to time: the edit runs {native.path()}.")
    return made


def as_calls(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    """By the edited columns, in place, as torch calls."""
    return columns.activate_edit("silu", gate, up, *edit.columns, active)


COMPILED: dict[str, Form] = {
    "by columns": by_columns,
    "over all": over_all,
    "operator": operator,
    "operator after the activation": operator_after,
}
EAGER: dict[str, Form] = {"in C": in_c, "by columns": as_calls, "over all": over_all}


def all_but_one(d_ff: int) -> EditTensors:
    """An edit of as many neurons as the code in C takes."""
    return clamping(torch.arange(d_ff - 1), d_ff)


def ratios(
    forms: Mapping[str, Form], gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None, seconds: float
) -> dict[str, float]:
    """Each of `forms` as a multiple of the unedited layer."""

    def call_of(function: Form) -> Callable[[int], Tensor]:
        return lambda _: function(gate, up, edit, active)

    calls = {name: call_of(function) for name, function in forms.items()}
    with torch.inference_mode():
        for call in calls.values():
            call(0)
        random = np.random.default_rng(0)
        samples = sample_in_rounds(ProcessorClock(), calls, budget=seconds, fewest=5, most=200, random=random)
    return {name: samples.ratio(name, UNEDITED) for name in forms if name != UNEDITED}


def compiled_ratios(case: Case, masked: bool, seconds: float) -> dict[str, float]:
    """Each form of the edit of `case`, compiled for its shape alone."""
    torch._dynamo.reset()
    forms = {name: torch.compile(form, fullgraph=True) for name, form in ({UNEDITED: unedited} | COMPILED).items()}
    return ratios(forms, *case.inputs[0][:2], case.edits[EDITED], case.masks[0.5] if masked else None, seconds)


def eager_ratios(case: Case, masked: bool, edit: EditTensors, seconds: float) -> dict[str, float]:
    """Each form of `edit` on the tensors of `case`, without a compiler; without C where that declines."""
    arguments = *case.inputs[0][:2], edit, case.masks[0.5] if masked else None
    declined = native.activate_edit(activation_of("silu").value, *arguments[:2], edit.table, arguments[3]) is None
    forms = {name: form for name, form in EAGER.items() if form is not in_c or not declined}
    return ratios({UNEDITED: unedited} | forms, *arguments, seconds)


def main() -> None:
    """Print two tables: all shapes, both dtypes, with a mask and without; with the compiler and without."""
    compiled, eager = Table("tokens x d_ff", "dtype", "mask", *COMPILED), Table("", "dtype", "mask", "edited", *EAGER)
    for shape in SHAPES:
        for dtype in DTYPES:
            case = make_case(shape, torch.device("cpu"), dtype, packed=False, seed=0)
            for masked in (False, True):
                row = f"{shape.tokens} x {shape.d_ff}", str(dtype).removeprefix("torch."), str(masked)
                compiled.add_row(*row, *_figures(COMPILED, compiled_ratios(case, masked, SECONDS)))
                for named, edit in (("1 %", case.edits[EDITED]), ("all but one", all_but_one(shape.d_ff))):
                    eager.add_row(*row, named, *_figures(EAGER, eager_ratios(case, masked, edit, SECONDS)))
    Console().print("compiled", compiled, f"not compiled; edits run {native.path()}", eager, sep="\n")


def _figures(forms: Mapping[str, Form], read: Mapping[str, float]) -> list[str]:
    return [f"{read[name]:.2f}" if name in read else "" for name in forms]


if __name__ == "__main__":
    main()
