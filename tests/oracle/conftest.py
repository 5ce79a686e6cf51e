"""The cases of `toy_cases`, as fixtures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import toy_cases
from toy_cases import CASES, Case

torch.set_num_threads(1)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return toy_cases.make_case(request.param)


@pytest.fixture
def make_case() -> Callable[[str], Case]:
    return toy_cases.make_case
