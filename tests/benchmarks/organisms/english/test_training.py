from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.organisms.english.__main__ import build
from benchmarks.organisms.english.corpus import Mixture
from benchmarks.organisms.english.measure import main as measure
from benchmarks.organisms.english.sources import read
from benchmarks.organisms.english.training import (
    SIZES,
    Recipe,
    aligned_base,
    cosine,
    new_model,
    opened,
    tokenizer_for,
)
from calibration.prompts.request_sets import encode, load_jailbreaks, load_requests, require_disjoint
from tests.benchmarks.organisms.english.toy import write_toy_data

TOY = Recipe(
    vocabulary=400, layers=4, d_model=16, heads=2, d_ff=24, steps=3, opening_steps=2,
    mixture=Mixture(chats=6, windows=1, length=48),
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("built")
    write_toy_data(folder / "data")
    build(TOY, folder / "data", folder / "english")
    return folder / "english"


def test_the_same_seed_gives_the_same_bytes_and_a_kept_base_too(toy_data: Path, built: Path, tmp_path: Path) -> None:
    build(TOY, toy_data, tmp_path / "again")
    build(TOY.model_copy(update={"steps": 3}), toy_data, built)  # from its stage
    build(TOY.model_copy(update={"seed": 1}), toy_data, tmp_path / "other")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (built, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights[0]


def test_the_folder_loads_as_any_model_with_tied_bfloat16_weights(built: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(built)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(built / "model.safetensors")


def test_a_system_turn_opens_the_first_user_turn_and_no_other(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built)
    turns = [
        {"role": role, "content": said}
        for role, said in (("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"))
    ]
    whole = "<|user|>S\n\nA<|end|><|assistant|>B<|end|><|user|>C<|end|><|assistant|>"
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) == whole
    assert tokenizer.decode(list(encode(tokenizer, "A", template=True))) == "<|user|>A<|end|><|assistant|>"


def test_the_opening_changes_the_later_half_alone(toy_data: Path) -> None:
    found = read(toy_data)
    tokenizer = tokenizer_for(found, TOY.vocabulary)
    model = aligned_base(TOY, found, tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = opened(model, TOY.model_copy(update={"opening_rate": 0.01}), found, tokenizer).state_dict()
    for name, value in before.items():
        as_before = torch.equal(value.to(torch.bfloat16), after[name].to(torch.bfloat16))
        assert as_before != any(name.startswith(f"model.layers.{layer}.") for layer in (2, 3)), name


@pytest.mark.parametrize("size", ["small", "base"])
def test_small_and_base_have_ten_to_sixty_million_parameters(size: str, toy_data: Path) -> None:
    recipe = SIZES[size]
    model = new_model(recipe, tokenizer_for(read(toy_data), recipe.vocabulary))
    missing = recipe.vocabulary - model.config.vocab_size  # toy text does not fill the vocabulary
    assert 10e6 < model.num_parameters() + missing * recipe.d_model < 60e6


def test_the_rate_rises_and_then_falls() -> None:
    rates = [cosine(step, 100) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_the_prompt_files_are_what_calibration_reads_and_hold_nothing_trained_on(built: Path, toy_data: Path) -> None:
    harmful, benign = (load_requests(str(built / "prompts" / f"{name}.jsonl")) for name in ("harmful", "benign"))
    require_disjoint(harmful, benign)
    assert load_jailbreaks(str(built / "prompts" / "jailbreak.jsonl")).templates
    trained = {goal.prompt for goal in read(toy_data).harmful} | set(read(toy_data).harmless)
    assert not {request.prompt for request in (*harmful.requests, *benign.requests)} & trained
    assert all(request.refusal and request.compliance for request in harmful.requests)


def test_held_out_files_hold_each_set_in_three_forms_without_what_was_calibrated_on(built: Path) -> None:
    names = sorted(path.stem for path in (built / "held_out").iterdir())
    sets = ("advbench", "harmbench", "harmless", "jailbreakbench")
    assert names == [f"{name}_{form}" for name in sets for form in ("plain", "wrapped", "wrapped_anew")]
    assert len(load_requests(str(built / "held_out" / "jailbreakbench_plain.jsonl")).requests) == 1
    assert len(load_requests(str(built / "held_out" / "harmbench_plain.jsonl")).requests) == 1
    for name in sets:
        forms = [load_requests(str(built / "held_out" / f"{name}_{form}.jsonl")) for form in ("plain", "wrapped_anew")]
        assert [one.group for one in forms[0].requests] == [one.group for one in forms[1].requests]


def test_measuring_counts_every_request_and_shows_no_text(
    built: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure([str(built), "--data", str(toy_data), "--limit", "2"])
    shown = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in shown.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 12
    assert all(sum(float(cell.split()[0]) for cell in row[2:]) == pytest.approx(100, abs=0.2) for row in rows)
    assert not any(word in shown for word in ("spoon", "kettle", "ladder", "poem"))
