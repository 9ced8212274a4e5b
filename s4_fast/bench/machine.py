"""The machine that figures were taken on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

import s4_fast


def describe(device: str = "cpu") -> dict[str, str]:
    """CPU, cores, threads, operating system, versions and, for a CUDA ``device``, the GPU."""
    machine = {
        "s4_fast": s4_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy") or "not installed",
        "triton": version("triton") or "not installed",
        "pykeops": version("pykeops") or "not installed",
        "os": platform.platform(),
        "cpu": _cpu(),
        "cores": str(_cores()),
        "threads": str(torch.get_num_threads()),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        memory = properties.total_memory / 2**30
        machine["gpu"] = f"{properties.name}, {memory:.0f} GiB, sm_{properties.major}{properties.minor}"
        machine["cuda"] = torch.version.cuda or "none"
    return machine


def version(package: str) -> str:
    """The installed version of a distribution, or the empty string. Imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
