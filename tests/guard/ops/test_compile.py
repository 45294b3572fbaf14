"""Under torch.compile: one graph, the right numbers, and numbers that stay alive."""

import pytest
import torch
import torch.nn.functional as F

from guard.ops import activate_edit, edit_neurons
from guard.ops.activations import ActivationName
from guard.runtime.buffers import EditBuffers
from tests.guard.ops.cases import Case, bits, make_case, same

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch._dynamo.reset()


def buffers_of(case: Case) -> EditBuffers:
    return EditBuffers(*case.parameters[:4], case.gate.shape[-1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_edit_compiles_without_a_graph_break_for_changing_shapes(backend: str) -> None:
    compiled = torch.compile(edit_neurons, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (2, 5, 9):
        case = make_case((tokens, 13), 4, torch.float32, seed=tokens)
        assert same(compiled(case.gate, *case.parameters), case.edited())


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [
        ("silu", torch.float32),
        *((activation, torch.bfloat16) for activation in ("silu", "gelu", "gelu_tanh", "relu", "relu2")),
    ],
)
def test_the_fused_function_compiles_without_a_graph_break(activation: ActivationName, dtype: torch.dtype) -> None:
    compiled = torch.compile(activate_edit, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (2, 5):
        case = make_case((tokens, 13), 4, dtype, layout="packed", seed=tokens)
        assert same(compiled(activation, case.gate, case.up, case.edit, case.active), case.made(activation))
        assert same(compiled(activation, case.gate, None, case.edit, None), make_ungated(case, activation))


def make_ungated(case: Case, activation: str) -> torch.Tensor:
    everywhere = Case(case.gate, case.up, case.neurons, case.scale, case.lower, case.upper, None)
    return everywhere.made(activation, gated=False)


@pytest.mark.parametrize(
    ("dtype", "operator"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_compiled_by_inductor_it_agrees_and_passes_bit_for_bit_what_is_not_edited(
    dtype: torch.dtype, operator: bool
) -> None:
    case = make_case((5, 67), 9, dtype, layout="packed", seed=11)
    function = torch.ops.neuron_guard.activate_edit.default if operator else activate_edit
    edit = case.edit.tensors if operator else case.edit
    compiled = torch.compile(lambda *inputs: function("silu", *inputs), fullgraph=True)
    made = compiled(case.gate, case.up, edit, case.active)
    torch.testing.assert_close(made, case.made("silu"), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    if not operator:  # the operator computes as eager models do
        plain = torch.compile(lambda gate, up: F.silu(gate) * up, fullgraph=True)
        unedited = plain(case.gate, case.up)
        assert torch.equal(bits(made)[~case.touched], bits(unedited)[~case.touched])


def test_gradients_come_through_the_compiled_function() -> None:
    case = make_case((5, 67), 9, torch.float32, seed=12)
    compiled = torch.compile(lambda gate, up: activate_edit("silu", gate, up, case.edit, case.active), fullgraph=True)
    leaves = case.gate.clone().requires_grad_(), case.up.clone().requires_grad_()
    found = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    expected = torch.autograd.grad(made_of(case, *leaves).sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def made_of(case: Case, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return Case(gate, up, *case.parameters).made("silu")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_graph_follows_when_the_edit_is_assigned(backend: str) -> None:
    case = make_case((5, 67), 9, torch.float32, seed=13)
    buffers = buffers_of(case)
    compiled = torch.compile(lambda gate, up: buffers.activate("silu", gate, up), fullgraph=True, backend=backend)
    before = compiled(case.gate, case.up)
    ones = torch.ones(9)
    buffers.assign(ones, -torch.inf * ones, torch.inf * ones)
    with torch.compiler.set_stance("fail_on_recompile"):
        after = compiled(case.gate, case.up)
    torch.testing.assert_close(after, F.silu(case.gate) * case.up)
    assert not torch.allclose(before, after)


def test_it_exports_as_plain_torch() -> None:
    case = make_case((5, 13), 4, torch.float32, seed=14)
    buffers = buffers_of(case)
    program = torch.export.export(buffers, (case.gate, case.active))
    assert not [node for node in program.graph.nodes if "neuron_guard" in str(node.target)]
    assert same(program.module()(case.gate, case.active), case.edited())
