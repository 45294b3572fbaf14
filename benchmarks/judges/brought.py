"""The judges that a user brings, from what the command was told of them."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.judges.classifier import load_classifier
from benchmarks.judges.judge import Judge
from benchmarks.judges.language_model import RefusalModel, StrongRejectModel
from guard.errors import NeuronGuardError


class HalfAJudgeError(NeuronGuardError):
    """A judge behind a URL without a model's name, or the other way about."""


def judges_brought(
    *,
    url: str | None,
    model: str | None,
    key: str | None,
    classifier: str | None,
    prompt: Path | None,
    refused_labels: Sequence[str],
    device: str,
) -> tuple[Judge, ...]:
    """A model behind a URL judges refusal, and harm by StrongREJECT's rubric; a classifier what it was trained for.

    None of them where none is named. Raises HalfAJudgeError, and what `load_classifier` raises.
    """
    if (url is None) != (model is None):
        raise HalfAJudgeError("a judge behind a URL needs both --judge-url and --judge-model.")
    found: list[Judge] = []
    if url is not None and model is not None:
        found += [RefusalModel(url=url, model=model, key=key), StrongRejectModel(url=url, model=model, key=key)]
    if classifier is not None:
        found.append(load_classifier(classifier, prompt_file=prompt, refused_labels=refused_labels, device=device))
    return tuple(found)
