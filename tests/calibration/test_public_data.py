"""The public data sets in full, where they are at hand. Nothing shows what is in them: only counts are compared."""

from pathlib import Path

import pytest

from calibration.prompts.request_sets import OverlapError, load_jailbreaks, load_requests, require_disjoint, wrap
from calibration.prompts.splits import split

FOLDERS = [Path(__file__).parents[3] / "shared" / "data", Path("/work/shared/data")]
DATA = next((folder for folder in FOLDERS if folder.is_dir()), None)
pytestmark = pytest.mark.skipif(DATA is None, reason="the evaluation data is not beside this checkout")


def counts(name: str) -> tuple[int, int, int]:
    loaded = load_requests(f"{DATA}/{name}")
    return len(loaded.requests), loaded.duplicates_dropped, loaded.without_prompt


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("advbench/harmful_behaviors.csv", 520),
        ("harmbench/harmbench_behaviors_text_all.csv", 400),
        ("xstest/xstest_prompts.csv", 450),
        ("xstest/xstest_prompts.csv#label=safe", 250),
        ("splits/harmful_train.json", 260),
        ("splits/harmful_val.json", 39),
        ("splits/harmless_val.json", 6264),
        ("splits/harmless_test.json", 6266),
        ("jailbreakbench/GCG__white_box__vicuna-13b-v1.5.json", 100),
        ("jailbreakbench/PAIR__black_box__llama-2-7b-chat-hf.json", 100),
    ],
)
def test_every_row_of_a_public_set_is_kept_or_counted(name: str, rows: int) -> None:
    kept, duplicates, without_prompt = counts(name)
    assert kept + duplicates + without_prompt == rows
    assert duplicates <= rows // 100
    assert (without_prompt == 96) == ("PAIR" in name)


def test_attacks_pair_with_their_goals_and_split_without_straddling() -> None:
    harmful = load_requests(f"{DATA}/advbench/harmful_behaviors.csv").requests
    pairs = wrap(harmful, load_jailbreaks(f"{DATA}/jailbreakbench/GCG__white_box__vicuna-13b-v1.5.json"))
    assert len(pairs) == 100
    assert sum(pair.reference.compliance is not None for pair in pairs) == 11  # goals that are in AdvBench too
    parts = split(pairs, seed=0)
    groups = [{pair.group for pair in part} for part in (parts.calibration, parts.validation, parts.held_out)]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_harmful_and_harmless_splits_do_not_meet_and_a_set_meets_itself() -> None:
    harmful, benign = (load_requests(f"{DATA}/splits/{name}_val.json") for name in ("harmful", "harmless"))
    require_disjoint(harmful, benign)
    with pytest.raises(OverlapError, match="39 requests are both in"):
        require_disjoint(harmful, harmful)
