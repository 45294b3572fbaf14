"""Prompt sets: which column is the prompt, what is dropped, what is refused, how jailbreaks wrap."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.prompts.request_sets import (
    ChatTemplateError,
    Jailbreaks,
    OverlapError,
    Request,
    encode,
    load_jailbreaks,
    load_requests,
    normalise,
    require_disjoint,
    wrap,
)
from calibration.prompts.rows import PromptFileError

SECRET = "zebra-quartz"


def saved(folder: Path, rows: object, name: str = "set.json") -> str:
    (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("row", "prompt", "compliance", "goal"),
    [
        ({"goal": "g", "target": "t"}, "g", "t", None),
        ({"Goal": "g", "Target": "t", "Behavior": "b"}, "g", "t", None),
        ({"prompt": "p"}, "p", None, None),
        ({"prompt": "p", "goal": "g", "target": "t"}, "p", None, "g"),
        ({"instruction": "i", "input": "", "output": "o"}, "i", None, None),
        ({"instruction": "i", "input": "more"}, "i\n\nmore", None, None),
        ({"Behavior": "b", "ContextString": ""}, "b", None, None),
        ({"Behavior": "b", "ContextString": "c"}, "c\n\n---\n\nb", None, None),
        ({"prompt": "p", "refusal": "r", "compliance": "c"}, "p", "c", None),
    ],
)
def test_the_columns_of_the_known_data_sets_are_understood(
    row: dict[str, str], prompt: str, compliance: str | None, goal: str | None, tmp_path: Path
) -> None:
    (request,) = load_requests(saved(tmp_path, [row])).requests
    assert (request.prompt, request.compliance, request.goal) == (prompt, compliance, goal)
    assert request.refusal == row.get("refusal")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": " \n\t"}, "'prompt' is empty"),
        ({"prompt": None}, "'prompt' is empty"),
        ({"prompt": 7, "goal": SECRET}, "'prompt' is a number, not a text"),
        ({"prompt": True}, "'prompt' is true or false, not a text"),
        ({"prompt": [SECRET]}, "'prompt' is a list, not a text"),
        ({"prompt": SECRET, "refusal": 3}, "'refusal' is a number, not a text"),
        ({"prompt": SECRET, "compliance": {}}, "'compliance' is an object, not a text"),
        ({"question": SECRET}, "has no prompt"),
        ({"prompt": SECRET + "\ud800"}, "half a surrogate pair"),
    ],
)
def test_a_bad_row_is_refused_with_its_place_and_without_its_text(
    row: dict[str, object], reason: str, tmp_path: Path
) -> None:
    source = saved(tmp_path, [{"prompt": "fine"}, row])
    with pytest.raises(PromptFileError) as caught:
        load_requests(source)
    assert f"{source}, row 2: " in str(caught.value)
    assert reason in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="holds no prompt"):
        load_requests(saved(tmp_path, []))


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    loaded = load_requests(saved(tmp_path, ["How are you?", "how  ARE you?", "Ｈow are you?", "Else"]))
    assert [request.row for request in loaded.requests] == [1, 4]
    assert loaded.duplicates_dropped == 2


def test_goals_without_an_attack_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [{"goal": "a", "prompt": None}, {"goal": "b", "prompt": "wrapped b"}]
    loaded = load_requests(saved(tmp_path, {"jailbreaks": rows}))
    assert ([request.goal for request in loaded.requests], loaded.without_prompt) == (["b"], 1)


def test_the_digest_depends_on_the_requests_and_not_on_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Prompt,id\none,1\ntwo,2\n", encoding="utf-8")
    as_csv, as_json = load_requests(str(tmp_path / "a.csv")), load_requests(saved(tmp_path, ["one", "two"]))
    other = load_requests(saved(tmp_path, ["one", "three"], "other.json"))
    assert as_csv.digest == as_json.digest != other.digest
    assert len(as_csv.digest) == 64


def test_rows_can_be_chosen_by_a_column(tmp_path: Path) -> None:
    source = saved(tmp_path, [{"prompt": "a", "label": "safe"}, {"prompt": "b", "label": "unsafe"}])
    assert [request.prompt for request in load_requests(f"{source}#label=safe").requests] == ["a"]
    with pytest.raises(PromptFileError, match="no column 'kind'"):
        load_requests(f"{source}#kind=safe")


def test_no_repr_shows_a_prompt(tmp_path: Path) -> None:
    loaded = load_requests(saved(tmp_path, [{"prompt": SECRET, "compliance": SECRET, "goal": SECRET}]))
    attacks = load_jailbreaks(saved(tmp_path, [{"template": SECRET + "{prompt}"}], "jailbreaks.json"))
    assert SECRET not in repr(loaded) + repr(loaded.requests[0]) + repr(wrap(loaded.requests, attacks)) + repr(attacks)


def test_templates_wrap_every_request_and_keep_its_goal_and_texts() -> None:
    requests = [Request(prompt="a", refusal="no"), Request(prompt="b {prompt}", compliance="yes")]
    pairs = wrap(requests, Jailbreaks(source="", digest="", templates=("1 {prompt}", "{prompt} 2")))
    assert [pair.harmful.prompt for pair in pairs] == ["1 a", "a 2", "1 b {prompt}", "b {prompt} 2"]
    assert [pair.group for pair in pairs] == ["a", "a", "b {prompt}", "b {prompt}"]
    assert all(pair.harmful.group == pair.reference.group for pair in pairs)
    assert pairs[0].harmful.refusal == "no"
    assert pairs[3].harmful.compliance == "yes"


def test_finished_attacks_meet_the_request_that_is_their_goal_or_bring_it_along(tmp_path: Path) -> None:
    source = saved(tmp_path, [{"goal": "A ", "prompt": "wrapped a"}, {"goal": "new", "prompt": "wrapped new"}])
    first, second = wrap([Request(prompt="a", compliance="yes", row=9)], load_jailbreaks(source))
    assert (first.reference.row, first.harmful.prompt, first.harmful.compliance) == (9, "wrapped a", "yes")
    assert (second.reference.prompt, second.harmful.prompt) == ("new", "wrapped new")
    assert first.group == first.harmful.group == "a"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"template": "no place for it"}], "row 1: the template holds {prompt} 0 times"),
        ([{"template": "{prompt}"}, {"template": "{prompt} {prompt}"}], "row 2: the template holds {prompt} 2 times"),
        ([{"template": "{prompt}"}, {"prompt": "x"}], "row 2: 'template' is empty"),
        ([{"prompt": "x"}], "row 1: a jailbreak is"),
        ([{"goal": "", "prompt": "x"}], "row 1: 'goal' is empty"),
        ([], "holds no jailbreak"),
    ],
)
def test_a_bad_jailbreak_is_refused(rows: list[dict[str, str]], reason: str, tmp_path: Path) -> None:
    with pytest.raises(PromptFileError) as caught:
        load_jailbreaks(saved(tmp_path, rows))
    assert reason in str(caught.value)


def test_a_request_in_both_sets_is_an_error_that_names_the_rows(tmp_path: Path) -> None:
    harmful = load_requests(saved(tmp_path, [{"prompt": "x"}, {"prompt": SECRET}], "h.json"))
    benign = load_requests(saved(tmp_path, [{"prompt": SECRET.upper()}], "b.json"))
    with pytest.raises(OverlapError) as caught:
        require_disjoint(harmful, benign)
    assert "rows 2 = 1" in str(caught.value)
    assert SECRET not in str(caught.value).lower()
    require_disjoint(load_requests(saved(tmp_path, ["x"])), benign)


@given(text=st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once == once.strip()


class Tokenizer:
    """Gives the calls it got."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(text)]}

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> list[int]:
        assert options == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        assert turns == [{"role": "user", "content": "hello"}]
        return [1, 2, 3]


def test_a_prompt_passes_through_the_chat_template_with_the_generation_prompt() -> None:
    tokenizer: Any = Tokenizer("template")
    assert encode(tokenizer, "hello", template=True) == (1, 2, 3)


def test_without_a_chat_template_the_way_out_is_named() -> None:
    tokenizer: Any = Tokenizer(None)
    with pytest.raises(ChatTemplateError, match="--no-template"):
        encode(tokenizer, "hello", template=True)
    assert encode(tokenizer, "hello", template=False) == (5,)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ({"kind": "sums", "category": "x"}, "sums"),
        ({"Category": " Art ", "type": "y"}, "Art"),
        ({"type": 3, "kind": ""}, None),
        ({}, None),
    ],
)
def test_a_request_s_kind_is_the_first_column_that_names_one_and_changes_no_digest(
    tmp_path: Path, cells: dict[str, object], kind: str | None
) -> None:
    named, plain = tmp_path / "named.jsonl", tmp_path / "plain.jsonl"
    named.write_text(json.dumps({"prompt": "What is this?", **cells}), "utf-8")
    plain.write_text(json.dumps({"prompt": "What is this?"}), "utf-8")
    found = load_requests(str(named))
    assert found.requests[0].kind == kind
    assert found.digest == load_requests(str(plain)).digest
