"""Inside a pass of vLLM the first tokens count, as many as were announced; all ranks together tell what happened."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard.runtime.buffers import EditBuffers
from guard.runtime.counts import Tally
from guard.spec.edit_spec import LayerEdit, Trigger
from guard.vllm.counts import PassCounts, PassLength, merged
from guard.vllm.install import EngineGuard, Share, install
from tests.guard import fake_vllm
from tests.guard.by_hand import make_trigger
from tests.guard.fake_vllm import D_FF, D_MODEL, TOKENS
from tests.guard.vllm.test_install import ALONE, STREAM, spec_of

CPU = torch.device("cpu")
EDITS = (  # some values are within these bounds, some are not
    LayerEdit(layer=2, neurons=(1, 7), scale=(1.0, 1.0), lower=(-0.01, -torch.inf), upper=(0.02, 0.01)),
    LayerEdit(layer=3, neurons=(0,), scale=(1.0,), lower=(0.0,), upper=(torch.inf,)),
)


def ran(guard: EngineGuard, model: Any, tokens: int) -> None:
    guard.length.tokens.fill_(tokens)
    model(STREAM)
    guard.length.tokens.zero_()


def by_hand(tokens: int, trigger: Trigger | None) -> Tally:
    """What the edits of a fake model come to, from what enters and leaves each."""
    model = fake_vllm.LlamaForCausalLM()
    guard = install(model, spec_of(EDITS, trigger), ALONE)
    clips, active = [], torch.ones(TOKENS, dtype=torch.bool)
    stream = STREAM.clone()
    for index, layer in enumerate(model.model.layers):
        if trigger is not None and index == trigger.layer:
            active = stream @ torch.tensor(trigger.direction) > trigger.threshold
        packed = nn.functional.normalize(stream) @ layer.into.T
        h = layer.mlp.act_fn.plain(packed) if hasattr(layer.mlp.act_fn, "plain") else layer.mlp.act_fn(packed)
        edited: Tensor = h
        for guarded in guard.layers:
            if guarded.edit.layer == index:
                edited = guarded.own(h, active)
                clips.append(int((edited != h)[:tokens].sum()))
        stream = stream + edited @ layer.mlp.down_proj.weight.T
    return Tally(tokens, int(active[:tokens].sum()), tuple(clips))


@pytest.mark.parametrize("trigger", [None, make_trigger(D_MODEL)], ids=["always", "trigger"])
@pytest.mark.parametrize("tokens", [0, 11, TOKENS])
def test_as_many_tokens_count_as_were_announced(tokens: int, trigger: Trigger | None) -> None:
    model = fake_vllm.LlamaForCausalLM()
    guard = install(model, spec_of(EDITS, trigger), ALONE)
    ran(guard, model, tokens)
    expected = by_hand(tokens, trigger)
    assert merged([{"rank": 0, "counts": guard.counts()}], [2, 3]) == expected
    assert (sum(expected.clips) > 0) == (tokens > 0)
    assert sum(expected.clips) < max(1, tokens) * 3


def test_passes_that_were_not_announced_count_nothing_and_sums_add_up() -> None:
    model = fake_vllm.LlamaForCausalLM()
    guard = install(model, spec_of(EDITS), ALONE)
    model(STREAM)
    assert set(map(tuple, guard.counts().values())) == {(0, 0, 0)}
    ran(guard, model, 11)
    once = guard.counts()
    model(STREAM)
    ran(guard, model, 11)
    assert guard.counts() == {layer: [2 * value for value in values] for layer, values in once.items()}
    guard.count_from_here()
    assert set(map(tuple, guard.counts().values())) == {(0, 0, 0)}


def test_what_is_counted_changes_nothing_that_is_computed() -> None:
    model = fake_vllm.LlamaForCausalLM()
    guard = install(model, spec_of(EDITS), ALONE)
    plain = model(STREAM)
    guard.length.tokens.fill_(TOKENS)
    assert torch.equal(model(STREAM), plain)


def test_shards_of_all_ranks_together_count_what_one_does() -> None:
    whole = EditBuffers.from_edit(EDITS[0], "cpu", D_FF)
    h = torch.randn(TOKENS, D_FF, generator=torch.Generator().manual_seed(8)) / 20
    ranks = []
    for size in (1, 2, 5):
        answers = []
        for rank in range(size):
            shard, length = whole.shard(rank, size), PassLength(CPU)
            length.tokens.fill_(9)
            counts = PassCounts(length)
            part = h.chunk(size, dim=-1)[rank]
            counts.add(part.index_select(-1, shard.neurons), shard, None)
            answers.append({"rank": rank, "counts": {"2": counts.sums.tolist()}})
        ranks.append(merged(answers, [2]))
    assert ranks[0] == ranks[1] == ranks[2]
    assert 0 < ranks[0].clips[0] < 18
    assert ranks[0].tokens == 9


def test_ranks_without_a_guarded_layer_say_nothing() -> None:
    model = fake_vllm.LlamaForCausalLM()
    for index in range(len(model.model.layers)):
        model.model.layers[index] = fake_vllm.PPMissingLayer()
    guard = install(model, spec_of(EDITS), Share(0, 1, CPU, TOKENS))
    assert guard.counts() == {}
    counted = {"rank": 1, "counts": {2: [5, 4, 3], 3: [5, 4, 1]}}
    assert merged([{"rank": 0, "counts": {}}, counted], [2, 3]) == Tally(5, 4, (3, 1))


def test_a_compiled_pass_counts_the_same() -> None:
    torch._dynamo.reset()
    whole, length = EditBuffers.from_edit(EDITS[0], "cpu", D_FF), PassLength(CPU)
    counts = PassCounts(length)
    h = torch.randn(TOKENS, D_FF, generator=torch.Generator().manual_seed(8)) / 20

    def step(h: Tensor) -> Tensor:
        counts.add(h.index_select(-1, whole.neurons), whole, None)
        edited: Tensor = whole(h)
        return edited

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    seen = []
    for run, tokens in ((step, 9), (compiled, 9), (compiled, 0), (compiled, 9)):
        length.tokens.fill_(tokens)
        before = counts.sums.clone()
        run(h)
        seen.append((counts.sums - before).tolist())
    assert seen[0] == seen[1] == seen[3]
    assert seen[2] == [0, 0, 0]
