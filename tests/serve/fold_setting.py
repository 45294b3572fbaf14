"""A tiny model on disk, specs that were made on it, and the command that folds them."""

import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from guard.spec.edit import LayerEdit
from guard.spec.edit_spec import EditSpec
from guard.spec.fingerprint import fingerprint
from neuron_guard import app
from tests.guard.specs import evidence_with, small_spec

FREE = (-math.inf, math.inf)
SCALE = (LayerEdit(layer=1, neurons=(3, 7), scale=(-0.5, 3.0), lower=FREE[:1] * 2, upper=FREE[1:] * 2),)
ZERO = (LayerEdit(layer=2, neurons=(0, 36), scale=(1.0, 0.0), lower=(0.0, -math.inf), upper=(0.0, math.inf)),)
MEAN = (*SCALE, LayerEdit(layer=2, neurons=(0, 36), scale=(1.0, 1.0), lower=(2.0, -1.5), upper=(2.0, -1.5)))
CLAMP = (LayerEdit(layer=2, neurons=(0,), scale=(1.0,), lower=(-0.5,), upper=(0.5,)),)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, "hi": 1, "there": 2}
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(WordLevel(words, "<unk>"))
    )
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


class Setting:
    """A tiny model on disk, and specs that were made on it."""

    def __init__(self, folder: Path, model: Any) -> None:
        self.model, self.tokenizer = model, make_tokenizer()
        self.source, self.output, self.spec_path = folder / "model", folder / "folded", folder / "guard.safetensors"
        model.save_pretrained(self.source)
        self.tokenizer.save_pretrained(self.source)

    def spec(self, layers: tuple[LayerEdit, ...], **changes: Any) -> EditSpec:
        identity = fingerprint(self.model, [edit.layer for edit in layers], self.tokenizer)
        evidence = evidence_with(mediators=(), neurons=())
        spec = small_spec(**({"model": identity, "layers": layers, "trigger": None, "evidence": evidence} | changes))
        spec.save(self.spec_path)
        return spec

    def fold(self, *more: str) -> Any:
        arguments = ["fold", str(self.source), "--spec", str(self.spec_path), "-o", str(self.output), *more]
        return CliRunner().invoke(app, arguments)

    def refusal(self, *more: str) -> str:
        outcome = self.fold(*more)
        assert outcome.exit_code == 2, outcome.output
        last: str = outcome.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert not [path for path in self.source.parent.iterdir() if path.name.endswith(".tmp")]
        return last

    def folded(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.output, dtype="auto")
