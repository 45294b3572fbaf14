"""Requests that a model has no positions for are left out, and said to be."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from benchmarks.safety.context import positions_of, readable
from benchmarks.safety.options import Options
from benchmarks.safety.prompt_sets import Prompts
from benchmarks.safety.stages import Loaded, plain_respondent
from benchmarks.safety.stages import readable as readable_subject
from benchmarks.safety.subject import NothingToAskError, Subject
from calibration.prompts.request_sets import Request
from tests.calibration.organisms import organism

REQUESTS = tuple(Request(prompt="How do I cut the lever?" + " the door" * count) for count in (0, 400))
ASKED = Prompts("made up", "harmful", "0", REQUESTS)


def loaded() -> Loaded:
    model, tokenizer = organism("two-layer")
    return Loaded(model, tokenizer, (), (), {})


def subject(*prompts: Prompts) -> Subject:
    return Subject(model="two-layer", spec=None, prompts=prompts, calibrated=None)


def test_what_leaves_no_room_for_its_answer_is_left_out_and_counted() -> None:
    kept, said = readable(ASKED, [6, 7], 10, 4)
    assert kept.requests == REQUESTS[:1]
    assert said is not None
    assert said.startswith("1 of 2 requests of made up were not asked")
    assert "10 positions" in said


def test_where_all_fit_or_no_end_is_known_nothing_is_said() -> None:
    assert readable(ASKED, [6, 6], 10, 4) == (ASKED, None)
    assert readable(ASKED, [6, 10**9], None, 4) == (ASKED, None)


def test_a_model_is_asked_what_it_has_positions_for(tmp_path: Path) -> None:
    options = Options(output=tmp_path, max_new_tokens=16)
    lengths = [len(ids) for ids in plain_respondent(options, loaded()).encoded([one.prompt for one in REQUESTS])]
    positions = positions_of(loaded().model)
    assert positions is not None
    assert lengths[0] < positions < lengths[1]
    found = readable_subject(options, subject(ASKED), loaded())
    assert [given.requests for given in found.prompts] == [REQUESTS[:1]]
    assert len(found.left_out) == 1


def test_where_nothing_fits_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(NothingToAskError, match="context"):
        readable_subject(Options(output=tmp_path), subject(replace(ASKED, requests=REQUESTS[1:])), loaded())


def test_a_configuration_without_an_end_has_none() -> None:
    class Text:
        def get_text_config(self) -> object:
            return object()

    class Model(nn.Module):
        config = Text()

    assert positions_of(Model()) is None
