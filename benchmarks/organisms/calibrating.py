"""How an organism is calibrated: on its own prompts, with jailbreaks where they are what opens it, without analyses."""

from pathlib import Path

from benchmarks.organisms.catalogue import Organism, load_truth, prompts_folder
from calibration.options import CalibrationOptions
from guard.load_options import Precision


def truth_of(folder: Path) -> Organism | None:
    """What is known by construction of the organism in `folder`; None for a model that was only trained."""
    return load_truth(folder.name, folder.parent) if (folder / "organism.json").exists() else None


def calibration_options(
    folder: Path,
    spec: Path,
    *,
    seed: int,
    report: Path | None = None,
    template: bool = True,
    device: str = "cpu",
    dtype: Precision = "float32",
) -> CalibrationOptions:
    """The calibration of the organism in `folder` that writes its edit to `spec`."""
    prompts = prompts_folder(folder.name, folder.parent)
    jailbreak, truth = prompts / "jailbreak.jsonl", truth_of(folder)
    wrapped = jailbreak.exists() if truth is None else truth.contrast == "jailbreak"
    return CalibrationOptions(
        model=str(folder),
        harmful=str(prompts / "harmful.jsonl"),
        benign=str(prompts / "benign.jsonl"),
        jailbreak=str(jailbreak) if wrapped else None,
        output=spec,
        report=report,
        template=template,
        device=device,
        dtype=dtype,
        seed=seed,
        analyses="none",
    )
