"""Quantise or cast a model after its calibration: does the guard agree to be installed, and what would its edit do?

Rounded weights make other neurons, with other values, so a spec belongs to the weights that it was made on. Where the
rounding changes nothing that the fingerprint sees (bfloat16 weights held in float32), the guard goes on.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.nn import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from benchmarks.robustness.result import AttackResult, Row, row
from benchmarks.robustness.subject import Subject
from guard.errors import UnsupportedModelError
from guard.families.architectures import architecture_of

BITSANDBYTES, BLOCK = "bitsandbytes", 64


def cast(dtype: torch.dtype, subject: Subject) -> nn.Module:
    """A copy of the model in another floating-point type."""
    return copy.deepcopy(subject.model).to(dtype)


def dynamic(subject: Subject) -> nn.Module:
    """A copy whose linear maps are int8, their inputs quantised as they come, by torch; on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor for each map that it changes
        changed: nn.Module = quantize_dynamic(  # type: ignore[no-untyped-call]
            copy.deepcopy(subject.model).float().cpu(), {nn.Linear}, dtype=torch.qint8
        )
    return changed


def int8(subject: Subject) -> nn.Module:
    """The model loaded again from where it came from, its weights int8 by bitsandbytes."""
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(
        subject.source,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),  # type: ignore[no-untyped-call]
        dtype=torch.bfloat16,
        device_map=str(next(subject.model.parameters()).device),
    )
    return loaded.train(False)


@torch.no_grad()
def nf4(subject: Subject) -> nn.Module:
    """A copy whose layers' linear maps hold weights rounded to nf4 by bitsandbytes, in the model's own type.

    The values that a model loaded in 4 bits computes with; so it needs no kernel, which some CPUs lack for some widths.
    """
    model = copy.deepcopy(subject.model)
    for layer in architecture_of(model).decoder_layers(model):
        for module in layer.modules():
            if isinstance(module, nn.Linear | Conv1D):
                module.weight.copy_(rounded_to_nf4(module.weight.detach()))
    return model


def rounded_to_nf4(weight: Tensor) -> Tensor:
    """`weight` with each block of 64 values, row by row, rounded to nf4 (Dettmers et al. 2023)."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    flat = weight.flatten()
    # a block a row: where blocks run over rows, bitsandbytes 0.50 mixes them up on a CPU
    blocks = functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    rounded: Tensor = dequantize_4bit(*quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4"))
    return rounded.flatten()[: len(flat)].reshape(weight.shape)


FORMS: dict[str, Callable[[Subject], nn.Module]] = {
    "bfloat16": partial(cast, torch.bfloat16),
    "float16": partial(cast, torch.float16),
    "int8, torch": dynamic,
    f"int8, {BITSANDBYTES}": int8,
    f"nf4, {BITSANDBYTES}": nf4,
}


def quantisation(subject: Subject, *, advance: Callable[[int], None] = lambda _: None) -> AttackResult:
    """The same requests before and after each form of quantisation, without the guard and with its edit.

    `advance` is told of each form that is done.
    """
    plain, guarded = subject.targets()
    before = {target.name: subject.says(target) for target in (plain, guarded)}
    rows: list[Row] = []
    left_out = []
    for name, make in FORMS.items():
        if BITSANDBYTES in name and find_spec(BITSANDBYTES) is None:
            left_out.append(f"{name} was left out: bitsandbytes is not installed.")
            continue
        model = make(subject)
        rows.append(row(name, plain.name, before[plain.name], subject.said(model, subject.requests)))
        installs = subject.installs_on(model)
        try:
            with subject.edited(model):
                after = subject.said(model, subject.requests)
        except UnsupportedModelError as error:
            left_out.append(f"{name}: the guard refuses to be installed, and its edit fits nowhere: {error}")
        else:
            rows.append(row(name, guarded.name, before[guarded.name], after, installs=installs))
        advance(1)
    return AttackResult(attack="quantisation", setting={}, rows=tuple(rows), left_out=tuple(left_out))
