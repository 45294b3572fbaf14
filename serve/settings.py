"""What an operator decides about a server. Clients decide none of it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from guard.load_options import Precision

MEBIBYTE = 2**20


class Settings(BaseModel):
    """A server's settings; the defaults are the command's.

    `completions`: also serve /v1/completions. `require_signature`: the public key that must have signed the spec.
    `max_batch` None: 16 in the embedded engine, its own choice in vLLM. `max_body` in bytes, `self_test_interval` in
    seconds, `max_waiting` in sequences beyond those being generated, `max_context` in tokens of prompt and answer
    together. `engine_arguments` go to vLLM as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    spec: Path
    engine: Literal["auto", "hf", "vllm"] = "auto"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_key: SecretStr | None = None
    served_model_name: str | None = None
    device: str = "auto"
    dtype: Precision = "auto"
    completions: bool = False
    require_signature: Path | None = None
    allow_refuted: bool = False
    max_batch: Annotated[int, Field(ge=1)] | None = None
    max_waiting: Annotated[int, Field(ge=1)] = 256
    max_context: Annotated[int, Field(ge=2)] | None = None
    max_body: Annotated[int, Field(ge=1)] = 2 * MEBIBYTE
    self_test_interval: Annotated[float, Field(gt=0)] = 60.0
    engine_arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or self.model
