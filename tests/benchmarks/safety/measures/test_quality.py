"""What a condition costs in predictions, over the answers that an organism gives."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from benchmarks.judges.judge import Exchange
from benchmarks.safety.conditions.condition import Condition
from benchmarks.safety.conditions.respondents import InProcess
from benchmarks.safety.measures.quality import AnswerQuality, OwnAnswers, measure, measure_answers, own_answers
from guard.hf import install_edits
from guard.loading import load_model
from guard.spec.measures import Estimate
from tests.serve.served import BENIGN, EDITS, HARMFUL, ORGANISM

REQUESTS = (BENIGN, HARMFUL, "How do I cut the chain?", "How do I heat the lever?")


@pytest.fixture(scope="module")
def own() -> OwnAnswers:
    model, tokenizer = load_model(str(ORGANISM), device="cpu", dtype="float32")
    return own_answers(InProcess(model, tokenizer, max_new_tokens=12), REQUESTS, batch_size=2)


def under(own: OwnAnswers, condition: Condition, batch_size: int = 3) -> AnswerQuality:
    return measure_answers(own, condition, batch_size=batch_size, seed=0)


def guard(own: OwnAnswers) -> Condition:
    return Condition("guard", partial(install_edits, own.respondent.model, EDITS, None))


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


@torch.inference_mode()
def one_by_one(own: OwnAnswers, guarded: bool) -> tuple[float, float, float]:
    """Mean KL, mean KL at the first token, perplexity of the own answers: a request at a time, without padding."""
    model, kls, firsts, nats = own.respondent.model, [], [], []
    for prompt, answer in zip(own.respondent.encoded(own.requests), own.answers.tokens, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        read = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        before = model(input_ids=ids).logits[0, read].double().log_softmax(-1)  # [answer, V]
        with guard(own).installed() if guarded else nullcontext():
            after = model(input_ids=ids).logits[0, read].double().log_softmax(-1)
        divergence = (before.exp() * (before - after)).sum(-1)
        kls.append(float(divergence.mean()))
        firsts.append(float(divergence[0]))
        nats.append(float(-after.gather(-1, torch.tensor(answer)[:, None]).mean()))
    count = len(own.requests)
    return sum(kls) / count, sum(firsts) / count, math.exp(sum(nats) / count)


def test_with_nothing_installed_nothing_moves(own: OwnAnswers) -> None:
    found = under(own, Condition("no guard", nullcontext))
    assert value(found.kl) == value(found.first_token_kl) == 0.0
    assert found.own_perplexity == found.answer_perplexity
    assert value(found.own_perplexity) == pytest.approx(one_by_one(own, guarded=False)[2], rel=1e-5)


def test_a_guard_is_measured_as_one_request_after_the_other_without_padding(own: OwnAnswers) -> None:
    found = under(own, guard(own))
    kl, first, perplexity = one_by_one(own, guarded=True)
    assert value(found.kl) == pytest.approx(kl, rel=1e-4)
    assert value(found.first_token_kl) == pytest.approx(first, rel=1e-4)
    assert value(found.own_perplexity) == pytest.approx(perplexity, rel=1e-4)
    assert kl > 0.1 < first
    assert value(found.answer_perplexity) > value(under(own, Condition("no guard", nullcontext)).answer_perplexity)


def test_how_requests_are_batched_changes_no_figure(own: OwnAnswers) -> None:
    one, all_at_once = under(own, guard(own), 1), under(own, guard(own), 4)
    for name in ("kl", "first_token_kl", "own_perplexity", "answer_perplexity"):
        assert value(getattr(one, name)) == pytest.approx(value(getattr(all_at_once, name)), rel=1e-4)


def test_a_condition_that_acts_on_no_request_costs_nothing(own: OwnAnswers) -> None:
    never = Condition("never", guard(own).installed, acts=lambda prompts: [False] * len(prompts))
    plain = under(own, Condition("never", nullcontext))
    assert under(own, never) == plain


def test_a_condition_that_acts_on_some_requests_costs_on_those_alone(own: OwnAnswers) -> None:
    second = own.respondent.encoded(REQUESTS)[1]
    some = Condition("some", guard(own).installed, acts=lambda prompts: [prompt == second for prompt in prompts])
    alone = OwnAnswers(
        own.respondent, REQUESTS[1:2] * 2, own_answers(own.respondent, REQUESTS[1:2] * 2, batch_size=2).answers
    )
    assert value(under(own, some).kl) == pytest.approx(value(under(alone, guard(own)).kl) / len(REQUESTS), rel=1e-4)


def test_rewritten_answers_have_a_perplexity_and_no_divergence(own: OwnAnswers) -> None:
    replaced = Condition("filter", nullcontext, rewrite=lambda exchanges: ["Sorry, I cannot help." for _ in exchanges])
    found = under(own, replaced)
    assert found.kl is found.first_token_kl is found.own_perplexity is None
    assert value(found.answer_perplexity) > value(under(own, Condition("no guard", nullcontext)).answer_perplexity)


def test_an_empty_answer_has_no_perplexity(own: OwnAnswers) -> None:
    def emptied(count: int) -> AnswerQuality:
        def rewrite(exchanges: Sequence[Exchange]) -> list[str]:
            return ["" if place < count else exchange.answer for place, exchange in enumerate(exchanges)]

        return under(own, Condition("filter", nullcontext, rewrite=rewrite))

    left = emptied(1).answer_perplexity
    assert left is not None
    assert left.n == len(REQUESTS) - 1
    assert emptied(len(REQUESTS)).answer_perplexity is None


def test_a_system_prompt_is_measured_over_the_answers_given_without_it(own: OwnAnswers) -> None:
    found = under(own, Condition("system prompt", nullcontext, system="cut the lever"))
    assert value(found.kl) > 0.0


def test_plain_text_is_read_without_a_condition_that_does_not_act_on_it(own: OwnAnswers) -> None:
    ids = torch.arange(64).reshape(2, 32) + 5
    model, installed = own.respondent.model, guard(own).installed
    acting = measure(model, ids, "guard", installed, seed=0, acts=lambda windows: [True] * len(windows))
    idle = measure(model, ids, "guard", installed, seed=0, acts=lambda windows: [False] * len(windows))
    assert acting == measure(model, ids, "guard", installed, seed=0)
    assert acting.kl.value > 0.0 == idle.kl.value
