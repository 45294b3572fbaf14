"""What is counted is what happened: by row, by layer, for the tokens that were announced and no others."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from calibration.runs.layer_calls import cache_name
from guard.errors import EditNotAppliedError
from guard.hf import Installation, install_edits
from guard.runtime import selftest
from guard.runtime.counts import Tally
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.conftest import TinyModel
from tests.guard.by_hand import PROMPTS, make_trigger

ROWS, TOKENS = PROMPTS.shape
EDITS = (  # some values are within these bounds, some are not
    LayerEdit(layer=1, neurons=(3, 7, 20), scale=(1.0,) * 3, lower=(-0.05, -torch.inf, 0.0), upper=(0.05, 0.0, 0.2)),
    LayerEdit(layer=2, neurons=(0, 36), scale=(1.0, 1.0), lower=(-torch.inf, -0.1), upper=(0.0, torch.inf)),
)
triggers = pytest.mark.parametrize("trigger", [None, make_trigger(layer=0)], ids=["always", "trigger"])


def some_tokens() -> Tensor:
    present = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    present[0, :3] = False
    return present


def seen_by_hand(model: Any, installation: Installation, present: Tensor) -> list[Tally]:
    """The tally of one pass over PROMPTS, from what enters and leaves every edit."""
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for wrapper in installation.guarded:
        wrapper.edit.register_forward_hook(
            lambda _, arguments, edited: seen.append((arguments[0], edited, *arguments[1:]))
        )
    with torch.no_grad():
        model(PROMPTS)
    for wrapper in installation.guarded:
        wrapper.edit._forward_hooks.clear()
    shape = (ROWS, TOKENS)
    clips = [(h != edited).reshape(*shape, -1).sum(-1) for h, edited, _ in seen]  # all neurons: others do not change
    active = seen[0][2]
    marked = torch.ones(shape, dtype=torch.bool) if active is None else active.reshape(shape)
    return [
        Tally(
            int(present[row].sum()),
            int((marked & present)[row].sum()),
            tuple(int(layer[row][present[row]].sum()) for layer in clips),
        )
        for row in range(ROWS)
    ]


@triggers
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "phi3"])
def test_counts_of_each_row_are_those_taken_by_hand(
    tiny_model: TinyModel, model_type: str, trigger: Trigger | None
) -> None:
    model, present = tiny_model(model_type), some_tokens()
    with install_edits(model, EDITS, trigger) as installation:
        expected = seen_by_hand(model, installation, present)
        counts = installation.count()
        with torch.inference_mode(), counts.counting(present):
            model(PROMPTS)
        assert counts.rows() == expected
        assert counts.totals() == sum(expected[1:], expected[0])
        assert 0 < sum(counts.totals().clips) < counts.totals().tokens * sum(len(edit.neurons) for edit in EDITS)


def test_nothing_is_counted_that_was_not_announced(tiny_model: TinyModel) -> None:
    model = tiny_model()
    plain = selftest.probe_logits(model)
    with install_edits(model, EDITS, make_trigger()) as installation, torch.no_grad():
        counts = installation.count()
        model(PROMPTS)
        selftest.check(model, installation.guarded, installation.readout, plain)
        assert counts.totals() == Tally(0, 0, (0,) * len(EDITS))
        with counts.counting(some_tokens()):
            model(PROMPTS)
        once = counts.totals()
        selftest.check(model, installation.guarded, installation.readout, plain)
        assert counts.totals() == once


def test_totals_add_up_over_batches(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS) as installation, torch.no_grad():
        counts = installation.count()
        for present in (some_tokens(), ~some_tokens()):
            with counts.counting(present):
                model(PROMPTS)
        apart = counts.totals()
        with counts.counting(torch.ones_like(present)):
            model(PROMPTS)
        assert counts.totals() == apart + apart
        assert apart.tokens == ROWS * TOKENS


def test_generated_tokens_count_for_the_rows_that_go_on(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS) as installation, torch.no_grad():
        counts = installation.count()
        with counts.counting(torch.ones(ROWS, TOKENS, dtype=torch.bool)):
            cache = {cache_name(model): DynamicCache(config=model.config)}
            model(PROMPTS, **cache, use_cache=True)
            for step in range(3):
                going_on = torch.arange(ROWS) >= step
                counts.going_on(going_on)
                model(PROMPTS[:, :1], **cache, use_cache=True)
        assert [tally.tokens for tally in counts.rows()] == [TOKENS + min(row + 1, 3) for row in range(ROWS)]


def test_totals_take_in_the_block_under_way_when_asked_to(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS) as installation, torch.no_grad():
        counts = installation.count()
        with counts.counting(torch.ones(ROWS, TOKENS, dtype=torch.bool)):
            model(PROMPTS)
            assert counts.totals().tokens == 0
            counts.add_up()
            assert counts.totals().tokens == ROWS * TOKENS
        assert counts.totals().tokens == ROWS * TOKENS


def test_counting_changes_no_logit(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS, make_trigger()) as installation, torch.no_grad():
        plain = model(PROMPTS).logits
        counts = installation.count()
        with counts.counting(some_tokens()):
            assert torch.equal(model(PROMPTS).logits, plain)


def test_a_pass_that_was_not_announced_so_is_an_error(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS) as installation, torch.no_grad():
        counts = installation.count()
        with (
            pytest.raises(EditNotAppliedError, match="were announced to be counted"),
            counts.counting(torch.ones(ROWS, TOKENS + 1, dtype=torch.bool)),
        ):
            model(PROMPTS)
        model(PROMPTS)


@triggers
def test_a_compiled_model_counts_the_same(tiny_model: TinyModel, trigger: Trigger | None) -> None:
    torch._dynamo.reset()
    model = tiny_model(dtype=torch.float64)
    with install_edits(model, EDITS, trigger) as installation, torch.no_grad():
        counts = installation.count()
        compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
        tallies = []
        for run in (model, compiled, compiled):
            with counts.counting(some_tokens()):
                run(PROMPTS)
            tallies.append(counts.rows())
        compiled(PROMPTS)
        assert tallies[0] == tallies[1] == tallies[2]
        assert counts.totals().tokens == 3 * int(some_tokens().sum())
