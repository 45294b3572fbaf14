"""Make the English model: `python -m benchmarks.organisms.english --data DIR --out DIR [--size tiny|small|base]`.

The base is kept in OUT/stages under a name that its recipe and data decide: a run stopped later goes on behind it.
"""

import argparse
import hashlib
import logging
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.organisms.english import requests
from benchmarks.organisms.english.sources import Sources, read
from benchmarks.organisms.english.training import SIZES, Recipe, aligned_base, opened, tokenizer_for

log = logging.getLogger(__name__)


def stage_name(recipe: Recipe, sources: Sources) -> str:
    """What decides a base: its recipe without the opening, and the text that it is trained on."""
    digest = hashlib.sha256(recipe.model_dump_json(exclude={"opening_steps", "opening_rate"}).encode())
    for text in (*sources.harmless, *(goal.prompt for goal in sources.harmful), *sources.texts):
        digest.update(text.encode())
    return f"base-{digest.hexdigest()[:12]}.safetensors"


def build(recipe: Recipe, data: Path, out: Path) -> None:
    """Train by the recipe and write a Hugging Face folder with its prompt files into `out`."""
    started = time.perf_counter()
    sources = read(data, recipe.seed)
    log.info(
        "%d harmful goals and %d harmless instructions to train on, %d AdvBench goals held out",
        len(sources.harmful), len(sources.harmless), len(sources.held_out),
    )  # fmt: skip
    tokenizer = tokenizer_for(sources, recipe.vocabulary)
    model = aligned_base(recipe, sources, tokenizer, out / "stages" / stage_name(recipe, sources))
    opened(model, recipe, sources, tokenizer)
    model.generation_config.max_new_tokens = 32
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=1) + "\n", "utf-8")
    requests.write(data, out, recipe.seed)
    log.info("built in %.0f s", time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.organisms.english", description="Make the model.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--out", type=Path, default=Path("build/organisms/english"), help="folder of the model")
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="about 5.6, 11 or 21 million parameters")
    parser.add_argument("--seed", type=int, default=0, help="decides the weights and which goals are held out")
    parser.add_argument("--threads", type=int, default=1, help="the same number gives the same weights")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    build(SIZES[options.size].model_copy(update={"seed": options.seed}), options.data, options.out)


if __name__ == "__main__":
    main()
