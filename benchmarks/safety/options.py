"""What a user can ask of `neuron-guard bench safety`, one field each. None of them can turn the aim around."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from guard.load_options import Precision
from guard.spec.measures import Frozen

Suite = Literal["quick", "full"]


class SubjectOptions(Frozen):
    """What is asked of which model behind which guard, and how. Either `model` or `organism` is given."""

    model: str | None = None
    organism: str | None = None
    spec: Path | None = None
    output: Path
    data: Path | None = None
    harmful: tuple[str, ...] = ()
    calibrated_harmful: tuple[str, ...] = ()
    template: bool = True
    device: str = "auto"
    dtype: Precision = "auto"
    seed: int = 0
    batch_size: int = 20
    max_new_tokens: int = 64
    allow_refuted: bool = False


class Options(SubjectOptions):
    """The options of the benchmark; keys are written nowhere."""

    suite: Suite = "quick"
    harmless: tuple[str, ...] = ()
    calibrated_benign: tuple[str, ...] = ()
    endpoint: str | None = None
    key: str | None = Field(default=None, repr=False, exclude=True)
    show_text: bool = False
    curve: bool = True
    tasks: bool = True
    judge: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key: str | None = Field(default=None, repr=False, exclude=True)
    judge_classifier: str | None = None
    judge_prompt: Path | None = None
    judge_refused_label: tuple[str, ...] = ()
