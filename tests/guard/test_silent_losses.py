"""The page of ways to lose an edit names tests that are there, and what a hook would lose, the guard does not."""

import re
from pathlib import Path
from typing import Any

import torch

from guard.hf import install_edits
from tests.conftest import TinyModel
from tests.guard.by_hand import EDITS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "vllm.md"
WAYS = 8


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > WAYS
    missing = [test for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert not missing


def test_every_way_has_its_tests() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [int(row) for row in re.findall(r"^\| (\d) \|", page, re.MULTILINE)] == list(range(1, WAYS + 1))
    assert [int(row) for row in re.findall(r"^(\d)\. `tests/", page, re.MULTILINE)] == list(range(1, WAYS + 1))


def test_a_hook_that_comes_after_compiling_is_lost_and_the_guard_is_not(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    tokens = torch.tensor([[5, 7, 11]])
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(tokens).logits
        down = model.model.layers[2].mlp.down_proj
        hook = down.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))
        assert torch.equal(compiled(tokens).logits, plain), "torch honours hooks now: this way is closed"
        hook.remove()
        with install_edits(model, EDITS):
            assert not torch.equal(compiled(tokens).logits, plain)
