"""Options that several sub-commands of `neuron-guard bench` take, each defined once."""

from pathlib import Path
from typing import Annotated

import typer

from guard.load_options import Precision

Seed = Annotated[int, typer.Option(min=0, help="Decides splits, samples and searches.")]
Output = Annotated[Path | None, typer.Option(dir_okay=False, help="Also write the figures to this file, as JSON.")]
Device = Annotated[str, typer.Option(help="Torch device. auto: CUDA if there is one, otherwise the CPU.")]
ModelDtype = Annotated[Precision, typer.Option(help="auto: float32 on a CPU, the checkpoint's own type on a GPU.")]
Spec = Annotated[Path | None, typer.Option(dir_okay=False, help="The edit spec of the guard that is measured.")]
Data = Annotated[
    Path | None,
    typer.Option(
        file_okay=False, exists=True, help="A folder with the field's sets. Default: they are loaded from the hub."
    ),
]
Harmful = Annotated[
    list[str] | None, typer.Option(help="Ask these harmful requests instead of the field's. May be repeated.")
]
CalibratedHarmful = Annotated[
    list[str] | None,
    typer.Option(
        help="Harmful requests that the calibration has seen. They are never asked; baselines learn from them."
    ),
]
NoTemplate = Annotated[
    bool, typer.Option("--no-template", help="Ask with plain prompts, without the model's chat template.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Requests in one batch.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens generated for each answer.")]
AllowRefuted = Annotated[
    bool, typer.Option("--allow-refuted", help="Measure a spec even if it failed its held-out test.")
]
JudgeUrl = Annotated[
    str | None, typer.Option(help="Also judge refusal and harm by a language model at this URL, up to its /v1.")
]
JudgeModel = Annotated[str | None, typer.Option(help="That model's name.")]
JudgeKey = Annotated[
    str | None, typer.Option(envvar="NEURON_GUARD_JUDGE_KEY", help="That model's key.", show_default=False)
]
JudgeClassifier = Annotated[
    str | None,
    typer.Option(help="Also judge by this classifier, a path or hub name: HarmBench's, Llama Guard, a head."),
]
JudgePrompt = Annotated[
    Path | None, typer.Option(dir_okay=False, exists=True, help="The prompt that the classifier was trained on.")
]
JudgeRefusedLabel = Annotated[
    list[str] | None, typer.Option(help="A label of the classifier's head that is a refusal. May be repeated.")
]
