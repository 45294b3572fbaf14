"""Which code runs an edit: the one rule, and what it rests on.

Inside torch.compile the operator would be a wall: its neighbours are not fused with it, and its call costs more than
its work where tokens are few. Plain torch is compiled with them. On a CPU by the edited columns: they are few, and the
compiler writes them in place. Read on two x86-64 cores with the CPU compiler of torch 2.13, one thread, on a machine
that did other work too; 1 % of the neurons edited, all tokens active; medians, as multiples of the compiled layer
without an edit; `python -m benchmarks.op.forms`:

    tokens x d_ff    float32: by columns  over all  operator    bfloat16: by columns  over all  operator
       1 x  3584                    1.21      1.20      2.48                    1.21      1.20      2.71
       8 x 14336                    0.91      1.30      1.58                    1.11      1.43      1.88
     256 x  3584                    1.15      1.72      1.68                    1.09      1.49      1.58
    2048 x 14336                    1.06      1.13      1.15                    1.12      1.21      1.22

Outside a compiler, on a CPU, the code in C goes first: guard/ops/native_columns.c edits in place what the activation
made, up to 2^17 values, tokens times edited neurons; beyond, torch's gather and scatter are as fast, and use all
threads. Below 2^15 neurons in float32, where torch multiplies in one thread, it makes the product too. An edit of every
neuron it leaves to torch, whose clamp in place reads fewer numbers: 1.24 instead of 3.20 times the unedited layer at
8 x 14336. By the same command on the same machine, as multiples of the layer that is not compiled and not edited:

    tokens x d_ff    float32: in C  by columns    bfloat16: in C  by columns
       1 x  3584              0.85        2.61              1.09        2.73
       8 x 14336              0.85        1.05              1.05        1.39
     256 x  3584              0.79        1.01              0.97        1.26
    2048 x 14336                 -        0.59                 -        0.62

On another device all neurons are edited in one pass, since there each kernel more is a launch more, and the numbers of
a neuron are shared by all tokens. That rests on reasoning alone: on CUDA nothing was read.

What a compiler fuses it may also round otherwise: compiled silu(gate) * up in bfloat16 differs from the eager one in
the last bit of one value in four, with or without an edit. "Bit for bit the unedited computation" therefore always
means the same backend with and without the edit.
"""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["traced columns", "traced over all", "operator", "columns"]


def form_of_edit(h: Tensor, needs_gradient: bool) -> Form:
    """The form for neurons like `h` [..., d_ff], `needs_gradient` where autograd has to see the result.

    Asked where the code in C has declined. The traced ones are in guard/ops/traced.py; "operator" goes through torch's
    dispatcher, to autograd or to a device's own kernel; "columns" is guard/ops/columns.py called directly, which saves
    a microsecond or two of dispatching.
    """
    on_cpu = h.device.type == "cpu"
    if torch.compiler.is_compiling():
        return "traced columns" if on_cpu else "traced over all"
    return "columns" if on_cpu and not needs_gradient else "operator"
