"""The op on a CUDA device, bfloat16 included: the definition, graphs, the compiler, other devices, stray reads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from guard.ops import activate_edit, apply_edit, reference, silu_mul_edit
from guard.ops.activations import ActivationName
from guard.runtime.buffers import EditBuffers
from tests.guard.ops.cases import ACTIVATIONS, DTYPES, LAYOUTS, Case, bits, make_case

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SHAPES = [(1, 14336), (3, 37), (2, 5, 300), (129, 512), (700, 1000)]


def on_device(case: Case, device: str = "cuda") -> Case:
    """The same case there, with the strides that it has here."""
    moved = (
        torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=device).copy_(v) for v in (case.gate, case.up)
    )
    rest = (None if values is None else values.to(device) for values in case.parameters)
    return Case(*moved, *rest)


def assert_close(made: Tensor, expected: Tensor) -> None:
    """Two units in the last place apart at most: the kernel's exponential is not torch's to the last bit."""
    unit = torch.finfo(made.dtype).eps
    torch.testing.assert_close(made, expected, rtol=4 * unit, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_edit_is_its_definition(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    case = on_device(make_case(shape, 7, dtype, layout=layout, special=True))
    edited = apply_edit(case.gate, case.edit, case.active)
    assert edited.is_contiguous()
    torch.testing.assert_close(edited, case.edited(), rtol=0, atol=0, equal_nan=True)
    touched = on_device_touched(case)
    assert torch.equal(bits(edited)[~touched], bits(case.gate)[~touched])


def on_device_touched(case: Case) -> Tensor:
    gate = torch.zeros(case.gate.shape[-1], dtype=torch.bool, device=case.gate.device)
    gate[case.neurons.long()] = True
    return (gate if case.active is None else case.active[..., None] & gate).expand(case.gate.shape)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_edit_in_one_are_their_definition(
    activation: ActivationName, shape: tuple[int, ...], dtype: torch.dtype, gated: bool
) -> None:
    case = on_device(make_case(shape, 7, dtype, layout="packed"))
    made = activate_edit(activation, case.gate, case.up if gated else None, case.edit, case.active)
    assert_close(made, case.made(activation, gated))


def test_what_is_not_edited_is_what_an_empty_edit_gives_bit_for_bit() -> None:
    case = on_device(make_case((300, 1000), 300, torch.bfloat16, layout="packed"))
    none = on_device(make_case((300, 1000), 0, torch.bfloat16)).edit
    made, plain = silu_mul_edit(case.gate, case.up, case.edit, case.active), silu_mul_edit(case.gate, case.up, none)
    touched = on_device_touched(case)
    assert torch.equal(bits(made)[~touched], bits(plain)[~touched])
    assert (plain != F.silu(case.gate) * case.up).double().mean() < 1e-3, "not rounded as eager models round"


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_no_edited_neuron(tokens: int) -> None:
    case = on_device(make_case((tokens, 33), 0, torch.bfloat16))
    assert_close(silu_mul_edit(case.gate, case.up, case.edit), F.silu(case.gate) * case.up)


def test_gradients_are_those_of_the_definition() -> None:
    case = on_device(make_case((5, 300), 90, torch.float32))
    gate, up = case.gate.clone().requires_grad_(), case.up.clone().requires_grad_()
    ours = torch.autograd.grad(silu_mul_edit(gate, up, case.edit, case.active).sum(), (gate, up))
    theirs = torch.autograd.grad(reference.activate_edit("silu", gate, up, *case.parameters).sum(), (gate, up))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


def test_torch_accepts_the_operators_there() -> None:
    case = on_device(make_case((2, 3, 40), 4, torch.bfloat16))
    for operator, arguments in (
        (torch.ops.neuron_guard.edit_neurons.default, (case.gate,)),
        (torch.ops.neuron_guard.activate_edit.default, ("silu", case.gate, case.up)),
    ):
        torch.library.opcheck(operator, (*arguments, case.edit.tensors, case.active))


@pytest.mark.parametrize("tokens", [1, 64, 300])
def test_a_captured_graph_replays_the_edit_and_follows_when_it_is_assigned(tokens: int) -> None:
    case = on_device(make_case((tokens, 1000), 9, torch.bfloat16, layout="packed"))
    buffers = EditBuffers(*case.parameters[:4], 1000)
    buffers.activate("silu", case.gate, case.up, case.active)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = buffers.activate("silu", case.gate, case.up, case.active)
    other = on_device(make_case((tokens, 1000), 9, torch.bfloat16, seed=1))
    case.gate.copy_(other.gate)
    graph.replay()
    assert_close(made, case.made("silu"))
    ones = torch.ones(9, device="cuda")
    buffers.assign(ones, -torch.inf * ones, torch.inf * ones)
    graph.replay()
    assert_close(made, F.silu(case.gate) * case.up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_compiles_without_a_graph_break(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    case = on_device(make_case((65, 300), 9, dtype, layout="packed"))
    compiled = torch.compile(silu_mul_edit, fullgraph=True)
    assert_close(compiled(case.gate, case.up, case.edit, case.active), case.made("silu"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_device_that_is_not_the_current_one_is_served() -> None:
    case = on_device(make_case((65, 300), 9, torch.bfloat16), "cuda:1")
    assert_close(silu_mul_edit(case.gate, case.up, case.edit, case.active), case.made("silu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on the PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_no_stray_access(tool: str) -> None:
    chosen = "is_its_definition or are_their_definition and shape1"
    ran = subprocess.run(
        [
            *("compute-sanitizer", "--tool", tool, "--error-exitcode", "7"),
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, str(Path(__file__))),
        ],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
