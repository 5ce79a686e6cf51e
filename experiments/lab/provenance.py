"""Where a result comes from: versions, hardware, commit."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from experiments.lab.config import SCIENCE_VERSION, Machine


@functools.cache
def commit() -> str | None:
    """The checkout's commit, with `+` when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, timeout=10, check=True)
        if Path(os.fsdecode(run(["git", "rev-parse", "--show-toplevel"]).stdout.strip())) != root:
            return None
        changed = run(["git", "status", "--porcelain", "--", "experiments", "sharpness"]).stdout
        return run(["git", "rev-parse", "HEAD"]).stdout.decode("ascii").strip() + ("+" if changed.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware(device: str) -> str:
    """What computed a run, in words: the GPU's name, or the processor and the number of cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} cores"


@functools.cache
def versions() -> dict[str, str]:
    """Of what computes; looked up once, because a look-up parses a package's metadata."""
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "safetensors")}


def provenance(machine: Machine) -> dict[str, Any]:
    """Everything that may explain a difference in rounding."""
    return {
        "science_version": SCIENCE_VERSION,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": dict(versions()),
        "hardware": hardware(machine.device),
        "device": machine.device,
        "threads": machine.threads,
        "micro_batch": machine.micro_batch,
    }
