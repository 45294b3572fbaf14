"""Classifiers as judges: read by the probability of their verdicts, in the form that each was trained in."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.judges.classifier import (
    ClassifierError,
    HeadClassifier,
    VerdictClassifier,
    load_classifier,
)
from benchmarks.judges.judge import Exchange, can_judge
from tests.conftest import TinyModel

WORDS = ("[pad] [unk] boats float they are light no yes safe un request answer verdict : { behavior } how").split()
EXCHANGES = [Exchange("how boats float", "they are light"), Exchange("boats", "no"), Exchange("float how", "boats are")]
PROMPT = "request : {behavior} answer : {generation} verdict :"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] == 'user' and 'request' or 'answer' }} : {{ message['content'] }} "
    "{% endfor %}verdict :"
)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """One word, one token; `unsafe` is written "un safe" here, two tokens."""
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(dict.fromkeys(WORDS))}, "[unk]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words)  # type: ignore[no-untyped-call]
    made.add_special_tokens({"pad_token": "[pad]", "unk_token": "[unk]"})
    made.chat_template = template
    return made


@pytest.fixture
def folder(tmp_path: Path, tiny_model: TinyModel) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "judge")
    tokenizer().save_pretrained(tmp_path / "judge")
    (tmp_path / "prompt.txt").write_text(PROMPT)
    return tmp_path


@torch.inference_mode()
def by_hand(judge: VerdictClassifier, exchange: Exchange, verdict: str) -> float:
    """log p(verdict | prompt), one exchange without padding, in float64."""
    words = judge.tokenizer
    prompt = words(PROMPT.format(behavior=exchange.prompt, generation=exchange.answer))["input_ids"]
    said = words(verdict)["input_ids"]
    logits = judge.model.double()(input_ids=torch.tensor([[*prompt, *said]])).logits[0]
    judge.model.float()
    table = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(table.gather(-1, torch.tensor(said)[:, None]).sum())


@pytest.mark.parametrize("verdicts", [("no", "yes"), ("safe", "un safe")])
def test_a_verdict_is_as_likely_as_all_its_tokens_after_the_prompt_in_the_file(
    folder: Path, verdicts: tuple[str, str]
) -> None:
    judge = load_classifier(str(folder / "judge"), prompt_file=folder / "prompt.txt", verdicts=verdicts, device="cpu")
    assert isinstance(judge, VerdictClassifier)
    shares = judge.harmful(EXCHANGES)
    for exchange, share in zip(EXCHANGES, shares, strict=True):
        harmless, harmful = (by_hand(judge, exchange, verdict) for verdict in verdicts)
        assert share == pytest.approx(1 / (1 + math.exp(harmless - harmful)), rel=1e-4)
    assert judge.refuses(EXCHANGES) == [share <= 0.5 for share in shares]
    assert len(set(shares)) == len(shares)


def test_exchanged_verdicts_exchange_the_classes(folder: Path) -> None:
    path = str(folder / "judge")
    one = load_classifier(path, prompt_file=folder / "prompt.txt", device="cpu")
    other = load_classifier(path, prompt_file=folder / "prompt.txt", verdicts=("yes", "no"), device="cpu")
    assert one.refuses(EXCHANGES) == [not refused for refused in other.refuses(EXCHANGES)]


def test_the_prompt_is_the_chat_templates_where_there_is_no_file(folder: Path) -> None:
    tokenizer(TEMPLATE).save_pretrained(folder / "judge")
    verdicts = ("safe", "un safe")
    by_template = load_classifier(str(folder / "judge"), verdicts=verdicts, device="cpu")
    by_file = load_classifier(str(folder / "judge"), prompt_file=folder / "prompt.txt", verdicts=verdicts, device="cpu")
    assert isinstance(by_template, VerdictClassifier)
    assert isinstance(by_file, VerdictClassifier)
    assert by_template.harmful(EXCHANGES) == by_file.harmful(EXCHANGES)


def test_a_text_that_holds_a_placeholder_stays_as_it_is(folder: Path) -> None:
    judge = load_classifier(str(folder / "judge"), prompt_file=folder / "prompt.txt", device="cpu")
    assert isinstance(judge, VerdictClassifier)
    tricky = Exchange("boats {generation}", "{behavior}")
    said = judge.tokenizer.decode(list(judge.asked(tricky)))
    assert "answer : { behavior } verdict" in said


@pytest.mark.parametrize("text", ["", "{behavior}", "{generation} {behavior}", "{behavior} {generation} {generation}"])
def test_a_prompt_without_its_places_is_an_error(folder: Path, text: str) -> None:
    (folder / "prompt.txt").write_text(text)
    with pytest.raises(ClassifierError, match="each once"):
        load_classifier(str(folder / "judge"), prompt_file=folder / "prompt.txt", device="cpu")


def test_a_causal_model_without_a_prompt_is_an_error(folder: Path) -> None:
    with pytest.raises(ClassifierError, match="no chat template"):
        load_classifier(str(folder / "judge"), device="cpu")


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="cannot load"):
        load_classifier(str(tmp_path / "nothing"))


@pytest.fixture
def head(tmp_path: Path) -> str:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": 32, "initializer_range": 1.0}
    config = AutoConfig.for_model("bert", **sizes, id2label={0: "NORMAL", 1: "REJECTION"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(tmp_path / "head")
    tokenizer().save_pretrained(tmp_path / "head")
    return str(tmp_path / "head")


def test_a_head_is_read_by_its_label_from_the_answer_alone(head: str) -> None:
    refused, normal = (load_classifier(head, refused_labels=[label], device="cpu") for label in ("REJECTION", "NORMAL"))
    assert isinstance(refused, HeadClassifier)
    said = refused.refuses(EXCHANGES)
    assert said == [not one for one in normal.refuses(EXCHANGES)]
    assert said == refused.refuses([Exchange("other", exchange.answer) for exchange in EXCHANGES])
    alone = [
        int(refused.model(**refused.tokenizer(one.answer, return_tensors="pt")).logits.argmax()) for one in EXCHANGES
    ]
    assert said == [label == 1 for label in alone]


@pytest.mark.parametrize("labels", [(), ("refusal",)])
def test_a_head_without_a_label_for_refusals_is_an_error_that_names_its_labels(head: str, labels: tuple[str]) -> None:
    with pytest.raises(ClassifierError, match="NORMAL, REJECTION"):
        load_classifier(head, refused_labels=labels, device="cpu")


def test_classifiers_of_harm_are_kept_from_harmless_requests_and_heads_are_not(folder: Path, head: str) -> None:
    of_harm = load_classifier(str(folder / "judge"), prompt_file=folder / "prompt.txt", device="cpu")
    of_refusal = load_classifier(head, refused_labels=["REJECTION"], device="cpu")
    assert can_judge(of_harm, "harmful")
    assert not can_judge(of_harm, "harmless")
    assert can_judge(of_refusal, "harmless")
    assert (of_harm.name, of_refusal.name) == ("judge", "head")
