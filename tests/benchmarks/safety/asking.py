"""What the tests of the whole benchmark share: an organism's requests in files, its spec, and options that ask them."""

import json
from pathlib import Path
from typing import Any

from benchmarks.organisms.catalogue import PROMPTS
from tests.serve.served import organism_spec

FILES = {"harmful": "harmful", "benign": "benign"}


def prepared(folder: Path, count: int) -> None:
    """The organism's spec in `folder`, `count` requests of each kind to ask, and others that were calibrated on."""
    organism_spec().save(folder / "spec.safetensors")
    for kind in FILES:
        rows = (PROMPTS / f"{kind}.jsonl").read_text().splitlines()
        (folder / f"{kind}.jsonl").write_text("\n".join(rows[:count]))
        (folder / f"calibrated-{kind}.jsonl").write_text("\n".join(rows[count : count + 40]))


def options_in(folder: Path, model: Path, *, calibrated: bool = False, **more: Any) -> dict[str, Any]:
    """The fields of options that ask what lies in `folder`; the output is still to be named."""
    fields: dict[str, Any] = {
        "model": str(model),
        "spec": folder / "spec.safetensors",
        "harmful": (str(folder / "harmful.jsonl"),),
        "harmless": (str(folder / "benign.jsonl"),),
        "batch_size": 5,
        "max_new_tokens": 16,
        "device": "cpu",
        "tasks": False,
        "curve": False,
    }
    if calibrated:
        fields["calibrated_harmful"] = (str(folder / "calibrated-harmful.jsonl"),)
        fields["calibrated_benign"] = (str(folder / "calibrated-benign.jsonl"),)
    return fields | more


def prompts_in(path: Path) -> list[str]:
    """The prompts of a jsonl file."""
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
