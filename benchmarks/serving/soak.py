"""`neuron-guard bench soak`: many streams at once through a server; none lost, none unguarded, memory flat.

The model is an organism: the guarded model answers its harmful requests one way and the plain one another, so that an
answer shows which of them gave it. Tokens that went through the guard are counted beside, by the server itself. vLLM's
prefix cache is off, since tokens of prompts that it has do not go through again.

On a CPU vLLM keeps a prepared product of each weight for each number of tokens that a pass had, up to 128: its worker
grows for thousands of requests, with a guard or without.
"""

import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import torch
from rich.console import Console
from scipy import stats

from benchmarks.common.machine import describe
from benchmarks.common.server import Server, serving
from benchmarks.common.streams import Answer, stream_all
from benchmarks.organisms.behaviour import generate
from benchmarks.organisms.catalogue import WEIGHTS, load_organism, prompts_folder
from benchmarks.serving.setting import unmeasured_spec
from benchmarks.serving.soak_report import Memory, SoakReport, table_of
from guard.errors import EditNotAppliedError, NeuronGuardError
from guard.hf import install
from guard.spec import atomic_files as files
from guard.spec.edit_spec import EditSpec, Estimate, LayerEdit, Trigger

ORGANISM, MODEL = "two-layer", "organism"
REQUESTS, CONCURRENCY, WARM_UP = 1000, 64, 2000
NEW_TOKENS = 24  # as many as `generate` makes
SELF_TEST_INTERVAL = 10  # seconds
SAMPLES = 50  # of memory
CONFIDENCE = 0.95
MEBIBYTE = 2**20
# of keys and values: so few that the warm-up has used all of them, and memory grows no further by them
CACHE = str(64 * MEBIBYTE)


class Expected(NamedTuple):
    """What the guarded and the plain model say to a prompt, greedily, in transformers."""

    prompt: str
    guarded: str
    plain: str


def run(
    *,
    engine: str = "hf",
    requests: int = REQUESTS,
    concurrency: int = CONCURRENCY,
    warm_up: int = WARM_UP,
    eager: bool | None = None,
    output: Path | None = None,
    console: Console | None = None,
) -> SoakReport:
    """Serve, ask `warm_up` requests, then ask and count; print the table and write the report as JSON to `output`.

    `eager` keeps vLLM from compiling, by default on a CPU. EditNotAppliedError where guarded answers are plain ones.
    """
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise NeuronGuardError("vLLM is not installed: install it, or use --engine hf.")
    on_cuda = torch.cuda.is_available()
    options = ["--engine", engine, "--served-model-name", MODEL, "--dtype", "float32", "--allow-refuted"]
    options += ["--max-batch", str(concurrency), "--self-test-interval", str(SELF_TEST_INTERVAL)]
    if engine == "vllm":
        without_graphs = not on_cuda if eager is None else eager
        options += ["--", "--no-enable-prefix-caching", "--kv-cache-memory-bytes", CACHE]
        options += ["--enforce-eager"] if without_graphs else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"VLLM_CACHE_ROOT": str(folder / "cache")}
        model, path = WEIGHTS / ORGANISM, folder / "guard.safetensors"
        spec = gate_spec()
        spec.save(path)
        known = expected(spec, max(requests, warm_up))
        asked, before = (list(islice(cycle(known), count)) for count in (requests, warm_up))
        machine = describe(torch.device("cuda" if on_cuda else "cpu"))
        with serving(model, path, folder / "log", options, environment) as server:
            # allocators and caches grow with the first requests, and then no more
            soak(server, before, concurrency)
            figures = soak(server, asked, concurrency)
    report = SoakReport(
        machine=machine, engine=engine, organism=ORGANISM, concurrency=concurrency, warm_up=warm_up, **figures
    )
    (console or Console()).print(table_of(report))
    if output is not None:
        files.write(output, (report.model_dump_json(indent=1) + "\n").encode())
    return report


def gate_spec() -> EditSpec:
    """The organism's planted gate held at 0, by way of a trigger that is active on every token."""
    model, tokenizer, organism = load_organism(ORGANISM)
    edits = [
        LayerEdit(layer=layer, neurons=neurons, scale=(1.0,) * k, lower=(0.0,) * k, upper=(0.0,) * k)
        for layer, neurons in organism.planted.items()
        for k in [len(neurons)]
    ]
    trigger = Trigger(
        layer=1,
        direction=(1.0,) * model.config.hidden_size,
        threshold=-1e30,
        false_trigger_rate=1.0,
        calibration_size=0,
    )
    return unmeasured_spec(model, edits, trigger, seed=0, tokenizer=tokenizer)


def expected(spec: EditSpec, count: int) -> list[Expected]:
    """At most `count` of the organism's requests, harmful and benign in turns, with what it answers guarded and plain.

    EditNotAppliedError if no request tells the two apart.
    """
    model, tokenizer, _ = load_organism(ORGANISM)
    harmful, benign = (_prompts(kind) for kind in ("harmful", "benign"))
    prompts = list(chain.from_iterable(zip(harmful, benign, strict=False)))[:count]
    plain = generate(model, tokenizer, prompts)
    with install(model, spec, tokenizer=tokenizer, allow_refuted=True):
        guarded = generate(model, tokenizer, prompts)
    if plain == guarded:
        raise EditNotAppliedError("the guarded organism says what the plain one says.")
    return [Expected(*each) for each in zip(prompts, guarded, plain, strict=True)]


def soak(server: Server, asked: Sequence[Expected], concurrency: int) -> dict[str, Any]:
    """The figures of asking `server` everything in `asked`, as SoakReport names them."""
    before, memory = _guard(server), [_held(server, 0)]

    def sample(ended: int) -> None:
        if ended * SAMPLES // len(asked) > (ended - 1) * SAMPLES // len(asked):
            memory.append(_held(server, ended))

    prompts = [each.prompt for each in asked]
    answers, seconds = stream_all(server, MODEL, prompts, concurrency=concurrency, new_tokens=NEW_TOKENS, on_end=sample)
    after = _guard(server)
    return {
        "requests": len(asked),
        "lost": sum(not answer.whole for answer in answers),
        "errors": Counter(answer.error for answer in answers if not answer.whole),
        "telling": sum(each.guarded != each.plain for each in asked),
        "unguarded": sum(not is_guarded(answer, each) for each, answer in zip(asked, answers, strict=True)),
        "tokens_needed": sum(answer.prompt_tokens + answer.tokens - 1 for answer in answers if answer.whole),
        "tokens_guarded": after["tokens"] - before["tokens"],
        "tokens_active": after["active_tokens"] - before["active_tokens"],
        "self_tests_passed": after["counts"]["self_tests_passed"],
        "seconds": seconds,
        "memory": tuple(memory),
        "slope": slope_of(memory),
    }


def is_guarded(answer: Answer, right: Expected) -> bool:
    """Whether it is the guarded model's answer; where it did not come whole, the beginning of it."""
    return answer.text == right.guarded if answer.whole else right.guarded.startswith(answer.text)


def slope_of(memory: Sequence[Memory]) -> Estimate:
    """MiB for 1,000 requests, by least squares."""
    line = stats.linregress([each.requests / 1000 for each in memory], [each.mebibytes for each in memory])
    margin = line.stderr * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(memory) - 2))
    return Estimate(value=line.slope, low=line.slope - margin, high=line.slope + margin, n=len(memory))


def _prompts(kind: str) -> list[str]:
    lines = (prompts_folder(ORGANISM) / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def _guard(server: Server) -> dict[str, Any]:
    response = httpx.get(f"{server.url}/guard", headers=server.headers, timeout=60)
    told: dict[str, Any] = response.raise_for_status().json()
    return told


def _held(server: Server, ended: int) -> Memory:
    return Memory(requests=ended, mebibytes=server.memory() / MEBIBYTE)
