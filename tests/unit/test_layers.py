"""Which package may import which, and what reading records must not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"sharpness": {"experiments", "analysis"}, "experiments": {"analysis"}}


def modules(package: str) -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / package).rglob("*.py")))
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


def test_reading_records_needs_no_torch() -> None:
    """A laptop without torch could not read the results: every module of analysis, and every study."""
    names = [*modules("analysis"), "experiments.keskar2017", "experiments.lab.sweep.plan", "experiments.lab.store.records"]
    assert len(names) > 15
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    """A library that cannot be used alone; a bare GPU machine that needs pandas."""
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 3
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found = {node.module.partition(".")[0]}
            else:
                continue
            assert not found & FORBIDDEN[package], f"{path}:{node.lineno}"
