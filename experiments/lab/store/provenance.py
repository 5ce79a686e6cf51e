"""Where a result comes from: versions, hardware, commit."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from experiments.lab.declare.checkout import ROOT
from experiments.lab.declare.config import SCIENCE_VERSION, Machine

INSTRUCTIONS = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16",
    "neon", "asimd", "asimdhp", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2", "sme", "sme2",
)
"""instruction sets by which libraries choose their kernels, and with them how sums are rounded, as Linux names them"""


@functools.cache
def commit() -> str | None:
    """The checkout's commit, with `+` when files differ from it; None outside a checkout."""
    try:
        run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, timeout=10, check=True)
        if Path(os.fsdecode(run(["git", "rev-parse", "--show-toplevel"]).stdout.strip())) != ROOT:
            return None
        changed = run(["git", "status", "--porcelain", "--", "experiments", "sharpness"]).stdout
        return run(["git", "rev-parse", "HEAD"]).stdout.decode("ascii").strip() + ("+" if changed.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def committed(path: Path) -> bool | None:
    """Whether `path` is as the last commit of its git repository has it; None where it lies in none (or there is no git)."""

    def git(*words: str) -> int:
        return subprocess.run(["git", *words], cwd=path.parent, capture_output=True, timeout=10).returncode

    try:
        if git("rev-parse", "--show-toplevel"):
            return None
        return not git("ls-files", "--error-unmatch", "--", path.name) and not git("diff", "--quiet", "HEAD", "--", path.name)
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def processor() -> tuple[str, list[str]]:
    """The processor's model, and which of INSTRUCTIONS it has."""
    try:
        if platform.system() == "Darwin":
            words = ["sysctl", "machdep.cpu.brand_string", "hw.optional"]
            model, names = of_sysctl(subprocess.run(words, capture_output=True, timeout=10).stdout.decode("utf-8", "replace"))
        else:
            model, names = of_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except (OSError, subprocess.SubprocessError):
        model, names = None, []
    return model or platform.processor() or platform.machine(), names


def of_cpuinfo(text: str) -> tuple[str | None, list[str]]:
    """Model and instruction sets from Linux's /proc/cpuinfo; ARM gives numbers in place of a model."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip().lower(), value.strip())
    flags = set(f"{found.get('flags', '')} {found.get('features', '')}".split())
    model = found.get("model name")
    if model is None and "cpu part" in found:
        model = f"{platform.machine()} (implementer {found.get('cpu implementer')}, part {found['cpu part']})"
    return model, [name for name in INSTRUCTIONS if name in flags]


def of_sysctl(text: str) -> tuple[str | None, list[str]]:
    """The same from macOS's `sysctl`, whose names are hw.optional.neon, hw.optional.avx2_0, hw.optional.arm.FEAT_BF16 ..."""
    model = re.search(r"^machdep\.cpu\.brand_string: (.*)$", text, flags=re.MULTILINE)
    names = re.findall(r"^hw\.optional\.(?:arm\.)?(\w+): [1-9]", text, flags=re.MULTILINE)
    has = {_APPLE.get(name, name.removeprefix("FEAT_").lower()) for name in names}
    return model[1] if model else None, [name for name in INSTRUCTIONS if name in has]


_APPLE = {"avx1_0": "avx", "avx2_0": "avx2", "FEAT_DotProd": "asimddp", "FEAT_FP16": "fphp"}
"""where macOS has another name than Linux"""


def hardware(device: str) -> str:
    """What computed a run, in words: the GPU's name, or the processor and the number of cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{processor()[0]}, {os.cpu_count()} cores"


@functools.cache
def versions() -> dict[str, str]:
    """Of what computes; looked up once, because a look-up parses a package's metadata."""
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "safetensors")}


@functools.cache
def kernels() -> dict[str, str]:
    """Which kernels torch chose for this processor, and whose BLAS it was built with."""
    import torch

    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {"kernels": torch.backends.cpu.get_cpu_capability(), "blas": blas[1] if blas else "unknown"}


def provenance(machine: Machine) -> dict[str, Any]:
    """Everything that may explain a difference in rounding."""
    model, names = processor()
    return {
        "science_version": SCIENCE_VERSION,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": dict(versions()),
        "hardware": hardware(machine.device),
        "processor": model,
        "instructions": list(names),
        **kernels(),
        "device": machine.device,
        "threads": machine.threads,
        "micro_batch": machine.micro_batch,
    }
