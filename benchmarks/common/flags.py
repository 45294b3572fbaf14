"""Options that several sub-commands of `neuron-guard bench` take, each said once."""

from pathlib import Path
from typing import Annotated

import typer

from guard.load_options import Precision

Seed = Annotated[int, typer.Option(min=0, help="Decides splits, samples and searches.")]
Output = Annotated[Path | None, typer.Option(dir_okay=False, help="Also write the figures as JSON, here.")]
Device = Annotated[str, typer.Option(help="Torch device. auto: CUDA where there is one, else the CPU.")]
ModelDtype = Annotated[Precision, typer.Option(help="auto: float32 on a CPU, the checkpoint's own type on a GPU.")]
Spec = Annotated[Path | None, typer.Option(dir_okay=False, help="The edit spec of the guard that is measured.")]
Data = Annotated[
    Path | None,
    typer.Option(file_okay=False, exists=True, help="A folder with the field's sets. Else they come by hub name."),
]
Harmful = Annotated[
    list[str] | None, typer.Option(help="Ask these harmful requests, not the field's. May be repeated.")
]
CalibratedHarmful = Annotated[
    list[str] | None,
    typer.Option(
        help="Harmful requests that the calibration has seen: never asked; baselines, if any, learn from them."
    ),
]
NoTemplate = Annotated[bool, typer.Option("--no-template", help="Ask without the model's chat template.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Requests answered together.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens generated for each answer.")]
AllowRefuted = Annotated[
    bool, typer.Option("--allow-refuted", help="Measure a spec that failed its held-out test all the same.")
]
JudgeUrl = Annotated[
    str | None, typer.Option(help="A language model behind this URL, up to its /v1, judges too: of refusal, of harm.")
]
JudgeModel = Annotated[str | None, typer.Option(help="That model's name.")]
JudgeKey = Annotated[
    str | None, typer.Option(envvar="NEURON_GUARD_JUDGE_KEY", help="That model's key.", show_default=False)
]
JudgeClassifier = Annotated[
    str | None, typer.Option(help="A classifier by path or hub name judges too: HarmBench's, Llama Guard, a head.")
]
JudgePrompt = Annotated[
    Path | None, typer.Option(dir_okay=False, exists=True, help="The prompt that the classifier was trained on.")
]
JudgeRefusedLabel = Annotated[
    list[str] | None, typer.Option(help="A label of the classifier's head that is a refusal. May be repeated.")
]
