"""The same numbers on a GPU as on the CPU, where there is one."""

from __future__ import annotations

import pytest
import torch
from gpu.checks import CHECKS, run


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_the_device_is_right(name: str) -> None:
    """Numbers of a GPU that are wrong; the same checks are the first part of `tests/gpu/visit.py`."""
    found = run(name, "cuda")
    assert found.status == "passed", found.sentence
