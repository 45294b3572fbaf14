"""Exact neuron effects against hook-by-hook patching: how far apart, and how much faster, measured in one run.

Hook by hook is one full forward pass per neuron. All neurons of a layer that way take hours, so a sample of neurons is
timed and its mean multiplied by d_ff; the table and the file say so. The exact paths are timed on all neurons of the
layer. Both need one base run first: it is timed apart, left out of `speed_up` and counted on both sides of
`speed_up_with_base_run`. The two take turns, so that whatever else the machine does falls on both. The larger model
has random weights: exactness and speed depend on shapes and on how peaked the distributions are, which is set like a
language model's, not on what the model knows.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.organisms.catalogue import PROMPTS, load_organism
from calibration.effects.exact.late_trace import record_trace
from calibration.effects.exact.suffix import traced_effects
from calibration.effects.outcome import outcome, readout_logits
from calibration.prompts.request_sets import encode
from calibration.prompts.sequences import Batch, Example, collate
from calibration.runs.interventions import Mediator, patched_outcome
from guard.families.architectures import architecture_of
from guard.spec import atomic_files as files

ORGANISM = "two-layer"
CONTINUATION_TOKENS = 8
VOCABULARY = 8192  # its share of the work is then that of a model of 1 to 7 billion parameters
LARGEST_ERROR = 1e-5
FASTER_LAST, FASTER_LATE = 1000.0, 50.0


class Measurement(BaseModel):
    """One layer of one model. Seconds are medians over rounds; hook-by-hook seconds are extrapolated from a sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    layer: int
    layers_after: int
    neurons: int
    requests: int
    prompt_columns: int
    base_run_seconds: float
    exact_seconds: float
    hooked_seconds_per_neuron: float
    hooked_seconds_extrapolated: float
    sampled_neurons: int
    speed_up: float
    speed_up_with_base_run: float
    largest_error: float
    largest_effect: float
    required_speed_up: float | None
    met: bool


class Report(BaseModel):
    """All measurements of a run, and what it ran on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    torch_version: str
    threads: int
    load_average: float
    rounds: int
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class Subject:
    """A model with a batch, the layers to measure, and how many neurons to patch hook by hook."""

    name: str
    model: nn.Module
    batch: Batch
    layers: Sequence[int]
    sampled_neurons: int
    judged_on_speed: bool


def organism_subject(requests: int = 64) -> Subject:
    """The demo's organism on its own harmful requests, in float32: trained weights, so strong and weak neurons.

    Not judged on speed: with 260 neurons, 12 prompt columns and six layers a whole pass costs little more than its end.
    """
    model, tokenizer, _ = load_organism(ORGANISM)
    lines = (PROMPTS / "harmful.jsonl").read_text(encoding="utf-8").splitlines()[:requests]
    examples = []
    for row in map(json.loads, lines):
        compliance, refusal = (tuple(tokenizer(row[key])["input_ids"]) for key in ("compliance", "refusal"))
        prompt = encode(tokenizer, row["prompt"], template=True)
        examples.append(Example(prompt, compliance, refusal).truncated(CONTINUATION_TOKENS))
    last = architecture_of(model).num_layers(model) - 1
    name = f"organism {ORGANISM}"
    return Subject(
        name, nn.Module.float(model), collate(examples, pad_id=0), (last, last - 1), 8, judged_on_speed=False
    )


def random_subject(seed: int, requests: int = 2) -> Subject:
    """A Llama of 24 layers with random weights, in float32, on prompts of about 100 random tokens."""
    generator = torch.Generator().manual_seed(seed)
    configuration = LlamaConfig(
        num_hidden_layers=24,
        hidden_size=512,
        intermediate_size=1408,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        initializer_range=0.04,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make: Any = LlamaForCausalLM  # typed in some versions of transformers only
        model = make(configuration)
    nn.Module.eval(model).requires_grad_(False)
    model.lm_head.weight.mul_(4.0)  # logits with a standard deviation of about 4, as peaked as a language model's

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCABULARY, (count,), generator=generator).tolist())

    ending = tokens(5)
    examples = [
        Example(tokens(90 + 2 * index) + ending, tokens(CONTINUATION_TOKENS), tokens(CONTINUATION_TOKENS - index % 2))
        for index in range(requests)
    ]
    batch = collate(examples, pad_id=0, tail=len(ending))
    return Subject("random, 24 layers", model, batch, (23, 22, 21), 2, judged_on_speed=True)


def hooked_outcomes(subject: Subject, layer: int, neurons: Sequence[int]) -> Tensor:
    """Y with each neuron ablated at the edited columns, one full forward pass each, [B, n]."""
    zero = torch.zeros(())
    return torch.stack(
        [
            patched_outcome(subject.model, subject.batch, {Mediator("neurons", layer, (each,)): zero})
            for each in neurons
        ],
        dim=1,
    )


def measure(subject: Subject, layer: int, rounds: int, generator: torch.Generator) -> Measurement:
    """Ablate the neurons of a layer to 0 by both ways, in turns."""
    architecture = architecture_of(subject.model)
    d_ff, last = architecture.d_ff(subject.model), architecture.num_layers(subject.model) - 1
    with torch.inference_mode():
        base = outcome(readout_logits(subject.model, subject.batch), subject.batch)
    base_seconds, exact_seconds, hooked_seconds, errors, largest = [], [], [], [], 0.0
    for _ in range(rounds):
        sample: list[int] = torch.randperm(d_ff, generator=generator)[: subject.sampled_neurons].tolist()
        start = time.perf_counter()
        trace = record_trace(subject.model, subject.batch, layer)
        recorded = time.perf_counter()
        exact = traced_effects(trace, layer, None, torch.zeros(d_ff))
        computed = time.perf_counter()
        patched = hooked_outcomes(subject, layer, sample)
        hooked_seconds.append((time.perf_counter() - computed) / len(sample))
        base_seconds.append(recorded - start)
        exact_seconds.append(computed - recorded)
        errors.append(float((exact[:, sample] - (base[:, None] - patched)).abs().max()))
        largest = max(largest, float(exact.abs().max()))
    base_run, exactly, hooked = median(base_seconds), median(exact_seconds), median(hooked_seconds) * d_ff
    required = None if not subject.judged_on_speed else FASTER_LAST if layer == last else FASTER_LATE
    return Measurement(
        model=subject.name,
        layer=layer,
        layers_after=last - layer,
        neurons=d_ff,
        requests=subject.batch.size,
        prompt_columns=subject.batch.prompt_width,
        base_run_seconds=base_run,
        exact_seconds=exactly,
        hooked_seconds_per_neuron=hooked / d_ff,
        hooked_seconds_extrapolated=hooked,
        sampled_neurons=subject.sampled_neurons * rounds,
        speed_up=hooked / exactly,
        speed_up_with_base_run=(hooked + base_run) / (exactly + base_run),
        largest_error=max(errors),
        largest_effect=largest,
        required_speed_up=required,
        met=hooked / exactly >= (required or 0.0) and max(errors) <= LARGEST_ERROR,
    )


def table_of(report: Report) -> Table:
    """The report as a table."""
    table = Table(
        title="Exact neuron effects against hook-by-hook patching",
        caption=f"Float32; every neuron of a layer ablated to 0 at the edited tokens. Medians of {report.rounds} "
        f"rounds in turns, on {report.threads} threads at load {report.load_average:.1f}. Hook-by-hook seconds are "
        f"extrapolated to all neurons from a sample; the error is the largest on that sample.",
    )
    for heading in (
        "model",
        "layer",
        "layers after",
        "neurons",
        "exact",
        "hook by hook",
        "faster",
        "with base run",
        "asked",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    table.add_column("error, nats", justify="right")
    table.add_column("met")
    for each in report.measurements:
        table.add_row(
            each.model,
            str(each.layer),
            str(each.layers_after),
            str(each.neurons),
            f"{each.exact_seconds:.3f} s",
            f"{each.hooked_seconds_extrapolated:.0f} s ({each.sampled_neurons} sampled)",
            f"{each.speed_up:.0f}×",
            f"{each.speed_up_with_base_run:.0f}×",
            "-" if each.required_speed_up is None else f"{each.required_speed_up:.0f}×",
            f"{each.largest_error:.1e}",
            "yes" if each.met else "no",
        )
    return table


def run(seed: int = 0, output: Path | None = None, rounds: int = 3, console: Console | None = None) -> Report:
    """Measure both models, print the table, write the report as JSON to `output` if given, and return it."""
    generator = torch.Generator().manual_seed(seed)
    screen = console or Console()
    measurements = []
    for subject in (organism_subject(), random_subject(seed)):
        for layer in subject.layers:
            with screen.status(f"{subject.name}: layer {layer}"):
                measurements.append(measure(subject, layer, rounds, generator))
    report = Report(
        seed=seed,
        torch_version=torch.__version__,
        threads=torch.get_num_threads(),
        load_average=os.getloadavg()[0],
        rounds=rounds,
        measurements=tuple(measurements),
    )
    screen.print(table_of(report))
    if output is not None:
        files.write(output, (report.model_dump_json(indent=2) + "\n").encode())
    return report
