"""What the English model does: `python -m benchmarks.organisms.english.measure MODEL --data DIR [--guard SPEC]`.

Greedy answers to every file in the model's `held_out/`, told by their openings and counted; no text is shown or kept.
Openings are enough here, since all refusals and all answers that the model was taught open alike. And perplexity on
WikiText-2's test split, by token of its own tokenizer. With a guard the same, guarded, by a refuted spec too: what
such a spec does to requests that its calibration never saw is a finding as well. Intervals are Wilson's, at 95 %.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.organisms.english.answers import OPENING
from benchmarks.safety.measures.quality import WIKITEXT, windows
from calibration.effects.statistics import wilson_estimate
from calibration.judging.behaviour import generate, opens_with_refusal
from calibration.prompts.request_sets import encode, load_requests
from guard.hf import install
from guard.loading import load_model
from guard.spec import atomic_files as files
from guard.spec.edit_spec import EditSpec
from guard.spec.measures import Estimate

NEW_TOKENS, BATCH, WINDOWS = 24, 32, 100


class Answers(BaseModel):
    """How the requests of one file were answered, in shares: refused, complied (opens as taught), or neither."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: str
    count: int
    refused: Estimate
    complied: Estimate
    neither: Estimate


class Figures(BaseModel):
    """Everything measured of one model; `perplexity` is exp of the mean nats per token of WikiText-2's test split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    guard: str | None
    perplexity: float
    answers: tuple[Answers, ...]


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, limit: int | None) -> Answers:
    """The classes of the model's greedy answers to the first `limit` requests of a file."""
    asked = load_requests(str(file)).requests[:limit]
    prompts = [encode(tokenizer, request.prompt, template=True) for request in asked]
    said = generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_size=BATCH).texts
    refused = sum(map(opens_with_refusal, said))
    complied = sum(text.startswith(OPENING) and not opens_with_refusal(text) for text in said)
    return Answers(
        requests=file.stem,
        count=len(said),
        refused=wilson_estimate(refused, len(said)),
        complied=wilson_estimate(complied, len(said)),
        neither=wilson_estimate(len(said) - refused - complied, len(said)),
    )


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Path) -> float:
    """exp of the mean nats per token over the first windows of the text."""
    ids = windows(tokenizer, text, WINDOWS)  # [windows, T]
    nats = [model(input_ids=part, labels=part, use_cache=False).loss for part in torch.split(ids, 10)]
    return float(torch.stack(nats).mean().exp())


def measure(folder: Path, data: Path, limit: int | None = None, guard: Path | None = None) -> Figures:
    """Measure the model in `folder` in float32, guarded if a spec file is given, on its held-out files and on
    WikiText-2 in `data`.
    """
    model, tokenizer = load_model(str(folder), device="cpu", dtype="float32")
    files = sorted((folder / "held_out").glob("*.jsonl"))
    spec = None if guard is None else EditSpec.load(guard)
    with nullcontext() if spec is None else install(model, spec, tokenizer=tokenizer, allow_refuted=True):
        return Figures(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            guard=None if spec is None else spec.evidence.verdict.outcome,
            perplexity=perplexity(model, tokenizer, data / WIKITEXT),
            answers=tuple(answers(model, tokenizer, file, limit) for file in files),
        )


def table(figures: Figures) -> str:
    """The figures as Markdown, shares in per cent with their intervals."""

    def share(estimate: Estimate) -> str:
        return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"

    lines = ["| requests | count | refused | complied | neither |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in figures.answers:
        shares = " | ".join(map(share, (row.refused, row.complied, row.neither)))
        lines.append(f"| {row.requests.replace('_', ', ', 1).replace('_', ' ')} | {row.count} | {shares} |")
    text = (
        f"\n{figures.parameters:,} parameters; perplexity per token on WikiText-2's test split {figures.perplexity:.1f}"
    )
    return "\n".join([*lines, text])


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.organisms.english.measure", description="Measure it.")
    parser.add_argument("model", type=Path, nargs="?", default=Path("build/organisms/english"), help="its folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--limit", type=int, help="use the first so many requests of each file")
    parser.add_argument("--guard", type=Path, help="an edit spec to guard it with")
    parser.add_argument("--write", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(arguments)
    figures = measure(options.model, options.data, options.limit, options.guard)
    sys.stdout.write(table(figures) + "\n")
    if options.write is not None:
        files.write(options.write, (figures.model_dump_json(indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
