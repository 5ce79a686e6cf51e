"""What a run says of the processor that made it."""

from __future__ import annotations

import pytest

from experiments.lab.declare.config import Machine
from experiments.lab.store import provenance

X86 = """processor\t: 0
model name\t: Some Server 9000
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma rdrand avx512f avx512_bf16 amx_bf16 amx_tile

processor\t: 1
model name\t: Some Server 9000
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd aes asimddp sve bf16 i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
APPLE = """machdep.cpu.brand_string: Apple M9
hw.optional.neon: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.arm64: 1
"""
INTEL_MAC = """machdep.cpu.brand_string: Intel(R) Core(TM) i9
hw.optional.sse4_1: 1
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
"""


def test_linux_names_model_and_instructions() -> None:
    """Two kinds of processor under one name, whose bits differ, could not be told apart afterwards."""
    names = ["sse4_1", "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"]
    assert provenance.of_cpuinfo(X86) == ("Some Server 9000", names)
    model, names = provenance.of_cpuinfo(ARM)
    assert model is not None and model.endswith("(implementer 0x41, part 0xd40)")
    assert names == ["asimd", "asimddp", "bf16", "i8mm", "sve"]
    assert provenance.of_cpuinfo("") == (None, [])


def test_macos_names_model_and_instructions() -> None:
    assert provenance.of_sysctl(APPLE) == ("Apple M9", ["neon", "asimddp", "bf16"])
    assert provenance.of_sysctl(INTEL_MAC) == ("Intel(R) Core(TM) i9", ["sse4_1", "avx2"])
    assert provenance.of_sysctl("") == (None, [])


def test_a_run_says_what_chose_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits that differ, and nothing in either record that says why."""
    found = provenance.provenance(Machine())
    assert found["processor"] and found["hardware"].startswith(found["processor"])
    assert isinstance(found["instructions"], list) and found["kernels"] and found["blas"]
