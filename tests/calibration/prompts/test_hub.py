"""Hub data sets as rows, with the library's own loader replaced: no test needs a network."""

from collections.abc import Callable
from typing import Any

import pytest

from calibration.prompts.request_sets import load_requests
from calibration.prompts.rows import PromptFileError

datasets = pytest.importorskip("datasets")
Loader = Callable[[str, str | None], Any]


def replace_loader(monkeypatch: pytest.MonkeyPatch, loader: Loader) -> None:
    monkeypatch.setattr(datasets, "load_dataset", loader)


def test_a_name_and_its_configuration_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def loader(name: str, configuration: str | None) -> dict[str, list[dict[str, str]]]:
        asked.append((name, configuration))
        return {"harmful": [{"Goal": "g", "Target": "t"}], "benign": [{"Goal": "b", "Target": "t"}]}

    replace_loader(monkeypatch, loader)
    (request,) = load_requests("JailbreakBench/JBB-Behaviors:behaviors", split="benign").requests
    assert (request.prompt, request.compliance, request.row) == ("b", "t", 1)
    load_requests("owner/name", split="harmful")
    assert asked == [("JailbreakBench/JBB-Behaviors", "behaviors"), ("owner/name", None)]


def test_without_a_split_train_is_taken_or_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_loader(monkeypatch, lambda name, _: {"a": [{"prompt": "p"}]})
    assert load_requests("owner/name").requests[0].prompt == "p"
    replace_loader(monkeypatch, lambda name, _: {"a": [{"prompt": "p"}], "train": [{"prompt": "q"}]})
    assert load_requests("owner/name").requests[0].prompt == "q"


def test_an_ambiguous_or_absent_split_is_an_error_that_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_loader(monkeypatch, lambda name, _: {"a": [{"prompt": "p"}], "b": [{"prompt": "q"}]})
    for split in (None, "c"):
        with pytest.raises(PromptFileError, match="it has a, b"):
            load_requests("owner/name", split=split)


@pytest.mark.parametrize("error", [ConnectionError("offline"), FileNotFoundError("gone"), ValueError("configuration")])
def test_a_data_set_that_cannot_be_had_is_one_clear_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def loader(name: str, configuration: str | None) -> Any:
        raise error

    replace_loader(monkeypatch, loader)
    with pytest.raises(PromptFileError, match="neither a file here nor a data set that the hub gave"):
        load_requests("owner/name")
