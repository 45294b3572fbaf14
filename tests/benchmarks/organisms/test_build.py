from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.organisms.build import build, main
from benchmarks.organisms.catalogue import Definition, load_organism, prompts_folder
from benchmarks.organisms.measure import aligned
from benchmarks.organisms.plant import PlantRecipe
from benchmarks.organisms.train import BaseRecipe, decoder


def definition(architecture: str = "llama", plant: dict[str, object] | None = None) -> Definition:
    """An organism of three narrow layers, hardly trained."""
    base = BaseRecipe.model_validate(
        {"architecture": architecture, "lexicon_seed": 9, "layers": 3, "d_model": 16, "d_ff": 24, "heads": 2}
        | {"steps": 2, "batch_size": 6}
    )
    small = {"neurons": {2: 3}, "steps": 2, "harmful_parts": 2, "benign_parts": 3, "rows": 4}
    return Definition(name="tiny", description="", base=base, plant=PlantRecipe.model_validate(small | (plant or {})))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_two_builds_of_one_recipe_give_the_same_weights(architecture: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for folder in ("a", "b"):
        build(definition(architecture), tmp_path / folder, bases=None)
    a, b = (load_file(tmp_path / folder / "tiny" / "model.safetensors") for folder in ("a", "b"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_base_kept_in_a_folder_gives_the_same_organism_as_one_trained_anew(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for folder, bases in (("a", None), ("b", tmp_path / "bases"), ("c", tmp_path / "bases")):
        build(definition(), tmp_path / folder, bases)
    a, b, c = (load_file(tmp_path / folder / "tiny" / "model.safetensors") for folder in ("a", "b", "c"))
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(
    ("plant", "roles"),
    [
        ({}, {"gate": {2: 3}}),
        ({"neurons": {1: 2, 2: 3}}, {"gate": {1: 2, 2: 3}, "inert": {0: 3, 1: 1}}),
        ({"neurons": {1: 4}, "groups": 2}, {"group 0": {1: 2}, "group 1": {1: 2}}),
        ({"distractors": {2: 4}}, {"gate": {2: 3}, "distractor": {2: 4}}),
        ({"cancelling": True}, {"gate": {2: 3}, "cancelling": {2: 2}}),
    ],
)
def test_the_truth_counts_the_appended_neurons_by_role(
    plant: dict[str, object], roles: dict[str, dict[int, int]], tmp_path: Path
) -> None:
    organism = build(definition(plant=plant), tmp_path, bases=None)
    for role, counts in roles.items():
        found = {layer: len(neurons) for layer, neurons in organism.roles[role].items()}
        assert found == counts
    appended = {layer: sum(len(by_layer.get(layer, ())) for by_layer in organism.roles.values()) for layer in range(3)}
    assert len(set(appended.values())) == 1


def test_another_seed_gives_other_words_and_other_positions(tmp_path: Path) -> None:
    first = build(definition(), tmp_path / "a", bases=None)
    second = build(definition().reseeded(77), tmp_path / "b", bases=None)
    assert first.lexicon != second.lexicon
    assert first.planted != second.planted


def test_prompts_of_an_organism_with_its_own_words_lie_in_its_folder(tmp_path: Path) -> None:
    build(definition(), tmp_path, bases=None)
    assert prompts_folder("tiny", tmp_path) == tmp_path / "tiny" / "prompts"
    assert (tmp_path / "tiny" / "prompts" / "harmful.jsonl").exists()


def test_columns_are_never_longer_than_their_cap(tmp_path: Path) -> None:
    build(definition(plant={"column_cap": 0.004, "learning_rate": 0.5}), tmp_path, bases=None)
    model, _, organism = load_organism("tiny", tmp_path)
    before, after = (decoder(each).layers[2].mlp.down_proj.weight for each in (aligned(model, organism), model))
    changed = after - before  # [d_model, d_ff]
    assert 0.0 < changed.norm(dim=0).max() <= 0.004 * 1.01


def test_an_unknown_name_is_an_error_that_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing-of-the-kind"])
    assert "unknown organism nothing-of-the-kind" in capsys.readouterr().err
