"""Shuffled labels: the two sets that a run is given differ in nothing but chance."""

from benchmarks.localisation.shuffled import REQUESTS, dealt
from benchmarks.organisms.catalogue import PROMPTS
from calibration.prompts.request_sets import load_requests

HARMFUL, BENIGN = (list(load_requests(str(PROMPTS / f"{kind}.jsonl")).requests) for kind in ("harmful", "benign"))


def test_no_request_is_dealt_into_both_sets() -> None:
    first, second = dealt(HARMFUL, BENIGN, seed=0)
    assert not {request.prompt for request in first} & {request.prompt for request in second}


def test_both_sets_hold_harmful_and_benign_requests_in_like_numbers() -> None:
    harmful = {request.prompt for request in HARMFUL}
    for seed in range(5):
        for part in dealt(HARMFUL, BENIGN, seed=seed):
            share = sum(request.prompt in harmful for request in part) / REQUESTS
            assert 0.3 < share < 0.7


def test_another_seed_deals_another_way() -> None:
    assert dealt(HARMFUL, BENIGN, seed=0) != dealt(HARMFUL, BENIGN, seed=1)
