"""The search: it never loses what it has, spends what it may, and its control spends the same."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.robustness.attacks.suffix import Budget, Found, alphabet, at_random, by_gradient, search
from benchmarks.robustness.attacks.suffix_objective import Objective, Place, lean
from calibration.prompts.sequences import Batch
from tests.benchmarks.robustness.guarded import guarded_organism
from tests.conftest import TinyModel

PLACE = Place(before=(1, 2), after=(3,), compliance=(4, 5), refusal=(6,))
WORDS = torch.arange(10, 60)


def odd_sum(_: nn.Module, batch: Batch) -> Tensor:
    """An objective that is known: of the tokens of the suffix, the sum of those that are odd."""
    suffix = batch.input_ids[: batch.size, 2:-3]
    return (suffix * (suffix % 2)).sum(1).float()


OBJECTIVE = Objective(nn.Identity(), odd_sum, 0)


def searched(seed: int, budget: Budget, successes_after: int = 10**9) -> tuple[Found, list[Tensor]]:
    """A search by random proposals, and all that it proposed."""
    draw = torch.Generator().manual_seed(seed)
    propose, proposed = at_random(WORDS, budget, draw), []

    def kept(suffix: Tensor) -> Tensor:
        proposed.append(propose(suffix))
        return proposed[-1]

    first = WORDS[torch.randint(len(WORDS), (budget.tokens,), generator=draw)]
    return search(OBJECTIVE, PLACE, first, kept, lambda _: len(proposed) >= successes_after, budget.steps), proposed


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(0, 8), st.integers(1, 9))
def test_the_search_never_lowers_its_objective_and_ends_at_the_best_it_scored(
    seed: int, tokens: int, steps: int, candidates: int
) -> None:
    found, proposed = searched(seed, Budget(tokens=tokens, steps=steps, candidates=candidates))
    assert list(found.course) == sorted(found.course)
    scored = [found.course[0], *(float(one) for part in proposed for one in OBJECTIVE.scores(PLACE, part))]
    assert found.course[-1] == max(scored) == float(OBJECTIVE.scores(PLACE, found.suffix[None])[0])


def test_the_search_spends_its_budget_and_no_more() -> None:
    found, _ = searched(0, Budget(tokens=3, steps=7, candidates=5))
    assert found.tried == 1 + 7 * 5
    assert len(found.course) == 1 + 7


def test_the_search_stops_where_it_has_succeeded() -> None:
    found, proposed = searched(0, Budget(tokens=3, steps=7, candidates=5), successes_after=2)
    assert len(proposed) == 2
    assert found.tried == 1 + 2 * 5


def test_both_ways_propose_as_many_suffixes_of_the_same_words(tiny_model: TinyModel) -> None:
    budget = Budget(tokens=3, candidates=11, best=4)
    suffix = torch.tensor([10, 20, 30])
    objective = Objective(tiny_model(), lean, 0)
    for propose in (
        at_random(WORDS, budget, torch.Generator().manual_seed(0)),
        by_gradient(objective, PLACE, WORDS, budget, torch.Generator().manual_seed(0)),
    ):
        candidates = propose(suffix)
        assert candidates.shape == (11, 3)
        assert set(candidates.flatten().tolist()) <= set(WORDS.tolist())


def test_a_gradient_candidate_differs_in_one_token_among_the_best_of_its_place(tiny_model: TinyModel) -> None:
    budget = Budget(tokens=3, candidates=64, best=4)
    suffix = torch.tensor([10, 20, 30])
    objective = Objective(tiny_model(), lean, 0)
    slopes = objective.gradient(PLACE, suffix)[:, WORDS]
    best = [set(WORDS[row.topk(4).indices].tolist()) for row in slopes]
    for candidate in by_gradient(objective, PLACE, WORDS, budget, torch.Generator().manual_seed(1))(suffix):
        changed = (candidate != suffix).nonzero().flatten().tolist()
        assert len(changed) <= 1
        assert all(int(candidate[place]) in best[place] for place in changed)


def test_suffixes_are_made_of_words_that_read_back_as_their_tokens() -> None:
    tokenizer = guarded_organism().tokenizer
    words = alphabet(tokenizer)
    assert len(words) > 100
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        suffix = words[torch.randint(len(words), (6,), generator=draw)].tolist()
        text = str(tokenizer.decode(suffix))
        assert tokenizer("How?" + text, add_special_tokens=False)["input_ids"][-6:] == suffix
