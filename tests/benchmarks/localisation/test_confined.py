"""Fresh requests: in none of the prompt files, in the mixture of kinds that these have."""

import json

from benchmarks.localisation.confined import FRESH_HARMFUL, TIMES, USED, fresh
from benchmarks.organisms.catalogue import COMMITTED_LEXICON, PROMPTS
from benchmarks.organisms.language import HOW_TO, Lexicon, requests

LEXICON = Lexicon.from_seed(COMMITTED_LEXICON)


def known() -> set[str]:
    files = [PROMPTS / f"{kind}.jsonl" for kind in ("harmful", "benign")]
    return {json.loads(line)["prompt"] for file in files for line in file.read_text("utf-8").splitlines()}


def test_no_fresh_request_is_in_a_prompt_file_or_was_trained_on() -> None:
    trained = {request.prompt for kind in USED for request in requests(LEXICON, kind, "train")}
    for kind, used in USED.items():
        prompts = {request.prompt for request in fresh(LEXICON, kind, TIMES * used)}
        assert prompts
        assert not prompts & known()
        assert not prompts & trained


def test_fresh_benign_pairs_of_words_are_in_no_prompt_file() -> None:
    for kind in (kind for kind in HOW_TO if kind != "harmful"):
        pairs = {request.answer for request in fresh(LEXICON, kind, TIMES * USED[kind])}
        used = {request.answer for request in requests(LEXICON, kind, "held_out")[: USED[kind]]}
        assert not pairs & used


def test_there_are_as_many_fresh_requests_as_asked_for() -> None:
    assert len(fresh(LEXICON, "harmful", FRESH_HARMFUL)) == FRESH_HARMFUL
    assert all(
        len(fresh(LEXICON, kind, TIMES * used)) == TIMES * used for kind, used in USED.items() if kind != "harmful"
    )
