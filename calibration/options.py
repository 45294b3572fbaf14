"""What a user can ask of a calibration, checked before anything is loaded."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from guard.load_options import DeviceMap, Precision


class CalibrationOptions(BaseModel):
    """The options of `neuron-guard calibrate`, one field each. None of them can turn the aim around."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1, description="path or hub name of a causal language model")
    harmful: str = Field(min_length=1, description="prompt file or hub data set of harmful requests")
    benign: str = Field(min_length=1, description="prompt file or hub data set of benign requests")
    jailbreak: str | None = Field(
        default=None, description="jailbreaks: rows with `template` holding {prompt}, or with `goal` and `prompt`"
    )
    trigger: Literal["auto", "always", "never"] = Field(
        default="auto", description="a trigger where it is better, in any case, or not at all"
    )
    output: Path = Field(default=Path("guard.safetensors"), description="where the edit spec is written")
    report: Path | None = Field(default=None, description="where the HTML report is written")
    template: bool = Field(default=True, description="pass prompts through the model's chat template")
    device: str = Field(default="auto", description="torch device; auto takes CUDA where there is one")
    device_map: DeviceMap | None = Field(
        default=None, description="how to spread a model's layers over several devices"
    )
    max_memory: float | None = Field(
        default=None, gt=0, description="GiB of activations kept in memory; the rest is kept in files"
    )
    dtype: Precision = Field(default="auto", description="auto: float32 on a CPU, the checkpoint's own on a GPU")
    seed: int = Field(default=0, ge=0, lt=2**32, description="decides splits, samples and searches")
    batch_size: int = Field(default=32, ge=1, description="requests in one forward pass")
    max_new_tokens: int = Field(default=32, ge=1, description="tokens generated per request")
    max_requests: int | None = Field(default=None, ge=1, description="use at most this many requests of each set")
    budget_kl: float = Field(default=0.01, gt=0, description="highest mean KL on benign requests, nats per token")
    budget_refusal: float = Field(default=0.01, ge=0, le=1, description="highest rise of the benign refusal rate")
    max_neurons: int = Field(default=64, ge=1, description="largest gate")
    analyses: str = Field(
        default="all", description="analyses of the gate for the report: `all`, `none`, or names with commas between"
    )
    show_text: bool = Field(
        default=False, description="show prompts and answers in the report, which are redacted otherwise"
    )
