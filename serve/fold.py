"""Write a model folder that has a spec's edit in its weights, for servers that cannot run the guard.

The folder appears whole or not at all: it is written beside its place, loaded again as a server would load it,
compared with the guarded model, and only then renamed. That costs room for the model twice, in memory and for its
logits; a folder that is trusted to guard and does not is worse than none.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from guard.errors import FoldError, ModelMismatchError
from guard.families.architectures import architecture_of
from guard.fold import check_foldable, fold_edits
from guard.hf import install
from guard.runtime.selftest import probe_logits
from guard.spec.edit_spec import EditSpec
from guard.spec.fingerprint import chat_template_digest, verify
from guard.spec.measures import Frozen
from guard.spec.permission import require_servable

RECORD_FILE = "neuron_guard.json"
# Not *.safetensors: servers load every such file of a folder as weights.
SPEC_FILE = "neuron_guard.spec"
# What save_pretrained of a model and its tokenizer leaves behind, and some converters and servers need.
SIDE_FILES = ("tokenizer.model", "processor_config.json", "preprocessor_config.json")
SHARD_SIZE = "5GB"
# Largest |folded - guarded| / |guarded| of the probe's logits (Frobenius). Not smaller, since in half precision each
# layer rounds what differs in the last place; that no weight is lost is checked bit for bit besides.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.06}
TEXTS = ("How do I heat the chain?", "  two\n\nlines\tand 12,345 ", "naïve Übung 你好 🙂", "<s></s><|im_end|>")


class FoldRecord(Frozen):
    """What was folded, as it stands in the folder: `layers` maps a layer to its number of edited neurons.

    `bias_entry` is the configuration entry that was switched on, if any; `logit_difference` what the check found.
    """

    neuron_guard: str
    spec_digest: str
    verdict: str
    model_type: str
    dtype: str
    layers: dict[int, int]
    neurons: int
    bias_entry: str | None
    logit_difference: float


def check_request(spec: EditSpec, folder: Path, *, allow_refuted: bool = False) -> None:
    """Refuse what can be refused before a model is loaded.

    RefutedSpecError for a refuted spec unless allowed; FoldError for an edit that weights cannot express, or a
    `folder` that is there and not empty.
    """
    require_servable(spec, allow_refuted=allow_refuted, remedy="pass --allow-refuted to fold it")
    check_foldable(spec.layers, spec.trigger)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FoldError(f"{folder} is there already and not an empty folder; name a new one.")


def check_checkpoint(name: str) -> None:
    """FoldError if the checkpoint at path or hub name `name` is quantised, or has no configuration to tell by."""
    try:
        entries, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        raise FoldError(
            f"cannot load {name!r} as a path or hub name of a model: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    _refuse_quantised(entries)


def write_folded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: EditSpec,
    folder: Path,
    *,
    source: str | None = None,
    allow_refuted: bool = False,
    shard_size: str = SHARD_SIZE,
) -> FoldRecord:
    """Fold `spec` into `model` and write model, tokenizer, spec and record to `folder`, which must be new or empty.

    The weights keep the model's dtype, so load it in the checkpoint's own. `source` is where it was loaded from, for
    the files that neither model nor tokenizer writes. `model` itself is folded afterwards. Raises ModelMismatchError
    (the spec was made on another model), RefutedSpecError, UnsupportedModelError, SelfTestError or FoldError; there is
    no folder then.
    """
    check_request(spec, folder, allow_refuted=allow_refuted)
    _refuse_quantised(model.config.to_dict())
    with install(model, spec, tokenizer=tokenizer, allow_refuted=allow_refuted):
        guarded = probe_logits(model)
    bias_entry = fold_edits(model, spec.layers)
    _check_is_another_model(model, spec)
    with _appearing(folder) as staging:
        try:
            model.save_pretrained(staging, max_shard_size=shard_size)
            tokenizer.save_pretrained(staging)
        except ValueError as error:
            raise FoldError(f"transformers does not save the folded model: {error}") from error
        _copy_side_files(source, staging)
        record = FoldRecord(
            neuron_guard=version("neuron-guard"),
            spec_digest=spec.digest,
            verdict=spec.evidence.verdict.outcome,
            model_type=architecture_of(model).model_type,
            dtype=str(model.dtype).removeprefix("torch."),
            layers={edit.layer: len(edit.neurons) for edit in spec.layers},
            neurons=sum(len(edit.neurons) for edit in spec.layers),
            bias_entry=bias_entry,
            logit_difference=_check_loads_again(staging, model, tokenizer, guarded),
        )
        spec.save(staging / SPEC_FILE)
        (staging / RECORD_FILE).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def _refuse_quantised(configuration: Mapping[str, object]) -> None:
    quantisation = configuration.get("quantization_config")
    if quantisation is None:
        return
    method = quantisation.get("quant_method", "some method") if isinstance(quantisation, Mapping) else "some method"
    raise FoldError(
        f"the checkpoint is quantised ({getattr(method, 'value', method)}), and no edit can be rounded into it; fold "
        "into the checkpoint that it was made from, and quantise that."
    )


def _check_is_another_model(model: nn.Module, spec: EditSpec) -> None:
    """A folded model must not pass for the one that the spec was made on, or it could be edited twice."""
    try:
        verify(spec, model)
    except ModelMismatchError:
        return
    raise FoldError("no weight changes when the edit is rounded to the model's type: there is nothing to fold.")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends well, and goes when it does not."""
    target = Path(os.path.realpath(folder))
    staging = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        staging.mkdir(parents=True)
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        staging.replace(target)  # fails on a folder that is not empty
    except (OSError, SafetensorError) as error:
        raise FoldError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_side_files(source: str | None, staging: Path) -> None:
    if source is None:
        return
    for name in SIDE_FILES:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is not None and not (staging / name).exists():
            shutil.copyfile(found, staging / name)


@torch.inference_mode()
def _check_loads_again(
    staging: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, guarded: Tensor
) -> float:
    """The relative difference of the logits, after checking that what is in the folder is what was to be written."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(staging, dtype="auto", output_loading_info=True)
        tokens = AutoTokenizer.from_pretrained(staging)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FoldError(f"the folded model does not load again: {error}") from error
    written, notes = loaded
    complaints = [kind for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if notes.get(kind)]
    if complaints:
        raise FoldError(f"the folded model does not load again whole ({', '.join(complaints)}); nothing was written.")
    nn.Module.to(written, model.device)
    written.train(model.training)
    here, there = model.state_dict(), written.state_dict()
    differing = sorted(here.keys() ^ there.keys()) or [
        name for name in here if here[name].dtype != there[name].dtype or not torch.equal(here[name], there[name])
    ]
    if differing:
        raise FoldError(f"{differing[0]} is another one in the written folder than in memory; nothing was written.")
    if not _cuts_alike(tokenizer, tokens):
        raise FoldError("the tokenizer in the written folder cuts texts differently; nothing was written.")
    folded = probe_logits(written)
    difference = float((folded.double() - guarded.double()).norm() / guarded.double().norm())
    tolerance = TOLERANCE[model.dtype]
    if not difference <= tolerance:  # NaN is no equality either
        raise FoldError(
            f"the folded model's logits differ from the guarded one's by {difference:.2g} of their norm, more than the "
            f"{tolerance:g} that rounding explains; nothing was written, serve the spec with the guard instead."
        )
    return difference


def _cuts_alike(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have one vocabulary, one chat template, and cut a few texts into the same tokens."""
    return (
        first.get_vocab() == second.get_vocab()
        and chat_template_digest(first) == chat_template_digest(second)
        and first(list(TEXTS))["input_ids"] == second(list(TEXTS))["input_ids"]
    )
