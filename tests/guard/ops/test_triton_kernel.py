"""The CUDA kernel where there is no CUDA: interpreted on this processor, and compiled for devices that are not here."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent


def test_interpreted_it_is_the_definition() -> None:
    # a process of its own, since the interpreter is chosen once, when triton is imported
    options = ["-q", "-p", "no:cacheprovider", "--noconftest"]  # which imports transformers
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / "triton_in_interpreter.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert re.search(r"\d{2} passed", ran.stdout), ran.stdout


COMPILED = [
    ("silu", "bf16", True, True, (16, 256, 8)),
    ("silu", "bf16", True, False, (1, 128, 1)),
    ("none", "fp16", False, True, (4, 256, 4)),
    ("gelu", "fp32", True, True, (16, 256, 8)),
    ("gelu_tanh", "bf16", True, True, (4, 256, 4)),
    ("relu2", "bf16", False, True, (16, 256, 8)),
    ("relu", "fp16", False, False, (1, 128, 1)),
]


def compiled(name: str, dtype: str, gated: bool, masked: bool, tile: tuple[int, int, int], capability: int) -> Any:
    """The kernel compiled for contiguous inputs with d_ff divisible by 16; no device is needed for that."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from guard.ops import triton_kernel

    pointers = dict.fromkeys(("scale", "lower", "upper"), "*fp32") | {"slots": "*i32", "out": f"*{dtype}"}
    pointers |= {"gate": f"*{dtype}"} | ({"up": f"*{dtype}"} if gated else {}) | ({"active": "*u8"} if masked else {})
    integers = dict.fromkeys(("rows", "d_ff", "gate_row", "up_row"), "i32")
    constants: dict[str, Any] = {"gate_column": 1, "up_column": 1, "NAME": name, "GATED": gated, "MASKED": masked}
    constants |= {"ROWS": tile[0], "COLUMNS": tile[1]}
    names = triton_kernel._kernel.arg_names
    constants |= {name: None for name in names if name not in {**pointers, **integers, **constants}}
    signature = {name: {**pointers, **integers}.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in {**pointers, **integers} if name != "rows"}
    source = ASTSource(
        triton_kernel._kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": tile[2], "enable_fp_fusion": False}
    )


@pytest.mark.parametrize(
    ("name", "dtype", "gated", "masked", "tile", "capability"),
    [*((*case, 90) for case in COMPILED), *((*case, 80) for case in COMPILED[:2])],
)
def test_it_compiles_for_devices_that_are_not_here_in_float32_and_16_bytes_at_a_time(
    name: str,
    dtype: str,
    gated: bool,
    masked: bool,
    tile: tuple[int, int, int],
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(name, dtype, gated, masked, tile, capability)
    assembly = kernel.asm["ptx"]
    assert kernel.asm["cubin"]
    assert ".f64" not in assembly, "something is computed in float64"
    assert "fma.rn.f32" not in assembly or name == "gelu", "a product is rounded together with a sum"  # erf has its own
    if tile[0] > 1:
        assert re.search(r"ld\.global\S*\.v4\.b32", assembly)
        assert re.search(r"st\.global\S*\.v4\.b32", assembly)


def test_tiles_follow_from_the_number_of_rows_and_cover_every_number() -> None:
    from guard.ops.triton_kernel import tile

    assert [tile(rows)[0] for rows in (1, 4, 5, 128, 129, 10**9)] == [1, 1, 4, 4, 16, 16]
    assert {tile(rows) for rows in (1, 5, 129)} == {case[-1] for case in COMPILED}
