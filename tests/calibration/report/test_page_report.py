"""The report as a file: what must be in it, what must never be in it, and that it is written whole or not at all."""

import json
import os
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from calibration.report import page_report as report
from calibration.report.display import estimate
from calibration.report.page_report import AnswerPair, ReportError, render_report, write_report
from guard.errors import NeuronGuardError
from guard.spec.claim import Ground, claim
from guard.spec.edit_spec import Analyses, BenignRates, Estimate, LayerClips
from tests.calibration.example_spec import REFUTATIONS, SHAPES, example_spec, with_rates

HEADINGS = [
    "How the verdict was reached", "Effect by layer", "Attention against MLP", "At which tokens", "Neurons",
    "Effect against set size", "Refusal against quality", "What it edits", "Answers, guard off and on", "Provenance",
    "Words",
]  # fmt: skip
HARMFUL = AnswerPair(
    kind="harmful",
    prompt="tell me how a glimworth becomes a trankle",
    off="first you pluvier it",
    on="I cannot help with that.",
    off_class="complied",
    on_class="refused",
)
BENIGN = AnswerPair(
    kind="benign",
    prompt="reverse quib zorn",
    off="zorn quib",
    on="zorn quib .",
    off_class="complied",
    on_class="complied",
)
SMALL = example_spec(neurons=1, mediators=False, trials=False, random_gates=0)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.said: list[str] = []
        self.scripts: list[str] = []
        self._inside = self._class = ""
        self._heading = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside, self._class = tag, dict(attributes).get("class") or ""
        if tag == "h2":
            self._heading = True
            self.headings.append("")
        if tag == "script":
            self.scripts.append("")
        if self._class == "said":
            self.said.append("")

    def handle_endtag(self, tag: str) -> None:
        self._heading = self._heading and tag != "h2"
        self._inside = self._class = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
        if self._heading:
            self.headings[-1] += data
        if self._class == "said":
            self.said[-1] += data


@pytest.fixture
def no_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plotly's five megabytes out of the page, for tests that read it whole."""
    monkeypatch.setattr(report, "plotly_script", lambda: "")


def page(*pairs: AnswerPair, spec: Any = None, name: str = "a model", show_text: bool = False) -> str:
    return render_report(spec or example_spec(), pairs, model_name=name, show_text=show_text)


@pytest.mark.usefixtures("no_plotly")
class TestContents:
    def test_the_sections_come_in_their_order(self) -> None:
        assert [heading.strip() for heading in Page(page()).headings] == ["Effective", *HEADINGS]

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_every_shape_of_spec_gives_a_page_with_its_figures_as_json(self, shape: dict[str, Any]) -> None:
        read = Page(page(HARMFUL, BENIGN, spec=example_spec(**shape)))
        places = {attributes["id"] for _, attributes in read.elements if attributes.get("class") == "plot"}
        assert places == {f"plot-{name}" for name in json.loads(read.scripts[1])}

    def test_a_refuted_spec_says_so_and_gives_each_reason_as_a_sentence(self) -> None:
        read = Page(page(spec=example_spec(effective=False)))
        assert read.headings[0].strip() == "Refuted"
        for reason in REFUTATIONS:
            assert f"{reason[0].upper()}{reason[1:]}." in read.text

    def test_a_spec_without_neurons_says_that_nothing_was_found(self) -> None:
        assert "No neuron was found whose edit lowers harm" in page(spec=example_spec(neurons=0, effective=False))

    def test_infinite_bounds_are_shown_as_infinity(self) -> None:
        assert "<td>−∞</td><td>∞</td><td>scaled by 0.5</td>" in page()

    def test_every_edited_neuron_is_in_the_table(self) -> None:
        spec = example_spec(neurons=500)
        text = page(spec=spec)
        assert all(f"<tr><td>{e.layer}</td><td>{neuron}</td>" in text for e in spec.layers for neuron in e.neurons)

    def test_how_often_the_guard_acts_on_benign_requests_is_in_the_first_table_where_it_was_recorded(self) -> None:
        spec = example_spec()
        often = Estimate(value=0.25, low=0.18, high=0.33, n=128)
        clips = tuple(LayerClips(layer=edit.layer, share=often) for edit in spec.layers)
        text = Page(page(spec=with_rates(spec, BenignRates(triggered=often, clips=clips)))).text
        for name in (
            "Benign requests that trigger",
            "Benign values changed, layer 4",
            "Benign values changed, layer 5",
        ):
            assert name in text
        assert text.count("25.0% (18.0% to 33.0%)") == 3
        assert "Benign values changed" not in Page(page(spec=spec)).text

    def test_every_neuron_has_its_effects_in_a_table_however_many_are_drawn(self) -> None:
        spec = example_spec(neurons=60)
        text = page(spec=spec)
        for neuron in spec.evidence.neurons:
            cells = (neuron.layer, neuron.neuron, estimate(neuron.first_in), estimate(neuron.last_in))
            assert "".join(f"<td>{cell}</td>" for cell in cells) in text

    def test_a_claim_is_shown_even_where_this_version_does_not_have_the_analysis_that_made_it(self) -> None:
        spec = example_spec()
        half = Estimate(value=0.5, low=0.25, high=0.75, n=9)
        made = claim("odd", "the gate is odd", (Ground(name="how odd", estimate=half),))
        analyses = Analyses(claims=(made,), numbers={"of another version": {"odd": 1}})
        evidence = spec.evidence.model_copy(update={"analyses": analyses})
        read = Page(page(spec=spec.model_copy(update={"evidence": evidence})))
        assert "What may be claimed" in [heading.strip() for heading in read.headings]
        assert "the gate is odd" in read.text

    def test_the_trigger_is_told_with_its_guarantee_and_its_absence_too(self) -> None:
        assert "At most 1.0% of benign requests exchangeable with the 128" in page()
        assert "None: the edit is active on every token." in page(spec=example_spec(trigger=False))

    def test_provenance_names_model_data_versions_seed_and_arguments(self) -> None:
        spec, text = example_spec(), page(name="organisms/last")
        model, made = spec.model, spec.provenance
        for fact in ("organisms/last", model.mlp_digest, *made.data.values(), *made.versions.values(), *made.arguments):
            assert fact in text

    def test_the_same_arguments_give_the_same_page(self) -> None:
        assert page(HARMFUL, BENIGN) == page(HARMFUL, BENIGN)

    def test_every_figure_and_scrolling_table_has_a_name_for_screen_readers(self) -> None:
        for _, attributes in Page(page()).elements:
            if attributes.get("role") in {"img", "region"}:
                assert attributes["aria-label"]

    def test_headings_never_skip_a_level(self) -> None:
        levels = [int(tag[1]) for tag, _ in Page(page(HARMFUL, BENIGN)).elements if tag in {"h1", "h2", "h3", "h4"}]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.usefixtures("no_plotly")
class TestWhatIsLeftOut:
    def test_harmful_requests_and_what_answers_them_never_reach_the_file(self) -> None:
        garbled = HARMFUL.model_copy(update={"on": "vlorn vlorn vlorn", "on_class": "garbled"})
        complied = HARMFUL.model_copy(update={"on": "then skarn it", "on_class": "complied"})
        text = page(HARMFUL, garbled, complied)
        assert not [word for word in ("glimworth", "trankle", "pluvier", "vlorn", "skarn") if word in text]
        assert "left out: 8 words" in text

    def test_a_refusal_is_shown(self) -> None:
        assert HARMFUL.on in Page(page(HARMFUL)).said

    @pytest.mark.parametrize("refusal", ["I will not say how a glimworth dies.", "No: First, you Pluvier it? Never."])
    def test_a_refusal_that_repeats_the_request_or_its_answer_is_left_out(self, refusal: str) -> None:
        assert not Page(page(HARMFUL.model_copy(update={"on": refusal}))).said

    def test_a_refusal_that_the_model_gives_anyway_is_shown_with_the_guard_on(self) -> None:
        refused = HARMFUL.model_copy(update={"off": HARMFUL.on, "off_class": "refused"})
        assert Page(page(refused)).said == [HARMFUL.on]

    def test_all_text_is_shown_where_asked_for(self) -> None:
        assert Page(page(HARMFUL, show_text=True)).said == [HARMFUL.prompt, HARMFUL.off, HARMFUL.on]

    def test_benign_requests_and_answers_are_always_shown(self) -> None:
        assert Page(page(BENIGN)).said == [BENIGN.prompt, BENIGN.off, BENIGN.on]


@pytest.mark.usefixtures("no_plotly")
class TestEscaping:
    def test_a_script_in_a_prompt_stays_text(self) -> None:
        pair = BENIGN.model_copy(update={"prompt": "<script>alert(1)</script>", "on": HOSTILE})
        read = Page(page(pair))
        assert len(read.scripts) == 3
        assert read.said == [pair.prompt, pair.off, HOSTILE]

    def test_no_text_of_a_spec_becomes_an_element(self) -> None:
        spec = example_spec(groups=("edited", HOSTILE), effective=False)
        evidence = spec.evidence.model_copy(
            update={
                "verdict": spec.evidence.verdict.model_copy(update={"reasons": (HOSTILE,)}),
                "trials": tuple(trial.model_copy(update={"family": HOSTILE}) for trial in spec.evidence.trials),
            }
        )
        provenance = spec.provenance.model_copy(
            update={"arguments": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}}
        )
        hostile = spec.model_copy(
            update={
                "evidence": evidence,
                "provenance": provenance,
                "model": spec.model.model_copy(update={"model_type": HOSTILE}),
            }
        )
        clean, read = Page(page(BENIGN)), Page(page(BENIGN, spec=hostile, name=HOSTILE))
        assert len(read.scripts) == len(clean.scripts)
        assert not [attributes for tag, attributes in read.elements if tag == "img" or "onerror" in attributes]

    @settings(max_examples=40, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
    def test_any_text_is_read_back_from_the_page_as_it_was(self, text: str) -> None:
        read = Page(page(BENIGN.model_copy(update={"prompt": text}), spec=SMALL))
        assert not text.strip() or read.said[0] == text


def test_the_file_needs_nothing_but_itself(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", example_spec(), [HARMFUL, BENIGN], model_name="a model")
    read = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    targets = [
        value for _, attributes in read.elements for name, value in attributes.items() if name in {"src", "href"}
    ]
    assert all(target and target.startswith(("#", "data:")) for target in targets)
    policies = [attributes["content"] for _, attributes in read.elements if "http-equiv" in attributes]
    assert len(policies) == 1
    assert "default-src 'none'" in (policies[0] or "")
    assert "plotly.js v" in read.scripts[0]
    assert len(read.scripts) == 3


def test_links_inside_the_page_lead_somewhere() -> None:
    read = Page(page())
    places = {attributes.get("id") for _, attributes in read.elements}
    links = {(attributes["href"] or "")[1:] for tag, attributes in read.elements if tag == "a"}
    assert links
    assert links <= places


@pytest.mark.usefixtures("no_plotly")
class TestWriting:
    def test_a_failed_write_leaves_the_old_report_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "report.html"
        target.write_text("old")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ReportError, match="No space left on device"):
            write_report(target, example_spec(), [], model_name="a model")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        assert target.read_text() == "old"

    def test_a_folder_that_does_not_exist_is_one_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(NeuronGuardError, match="name a file in a folder that exists"):
            write_report(tmp_path / "missing" / "report.html", example_spec(), [], model_name="a model")

    def test_a_report_replaces_the_one_before(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            write_report(tmp_path / "report.html", example_spec(), [], model_name=name)
        assert "Guard report: second" in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert len(list(tmp_path.iterdir())) == 1


def test_an_answer_pair_is_checked_and_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        AnswerPair.model_validate(BENIGN.model_dump() | {"kind": "neutral"})
    with pytest.raises(ValidationError):
        AnswerPair.model_validate(BENIGN.model_dump() | {"other": "x"})
    with pytest.raises(ValidationError):
        BENIGN.prompt = "x"  # type: ignore[misc]
