"""The Grafana dashboard asks for metrics and labels that /metrics has, and leaves none of them out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_metrics import Samples

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "serve" / "grafana.json").read_text())
OF_PROMETHEUS = {"instance", "job"}  # labels that scraping adds


def panels() -> list[dict[str, Any]]:
    return list(DASHBOARD["panels"])


def queries() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*asked, *(one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query")]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bguard_\w+", text))


@pytest.mark.parametrize("query", queries())
def test_every_query_names_metrics_that_are_exported(query: str, exported: Samples) -> None:
    assert names_in(query)
    assert names_in(query) <= {name for name, _ in exported}


@pytest.mark.parametrize("query", queries())
def test_every_label_of_a_query_is_one_of_its_metrics(query: str, exported: Samples) -> None:
    known = OF_PROMETHEUS | {label for name, labels in exported if name in names_in(query) for label, _ in labels}
    selected = {label for part in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)\s*=", part)}
    grouped = {label for part in re.findall(r"by \(([^)]*)\)", query) for label in re.findall(r"\w+", part)}
    assert selected | grouped <= known


def test_every_legend_names_labels_that_its_query_keeps(exported: Samples) -> None:
    for panel in panels():
        for target in panel["targets"]:
            known = {
                label for name, labels in exported if name in names_in(target["expr"]) for label, _ in labels
            } | OF_PROMETHEUS
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known


def test_no_metric_is_left_out(exported: Samples) -> None:
    ours = {name for name, _ in exported if name.startswith("guard")}
    assert ours - {"guard_info"} == set().union(*map(names_in, queries())) - {"guard_info"}
    assert "guard_info" in set().union(*map(names_in, queries()))


def test_panels_have_their_own_place_and_data_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert {one["name"] for one in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}
