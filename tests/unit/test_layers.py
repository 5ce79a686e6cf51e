"""Which module may import which, read from the source; and what reading records must not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from experiments.lab.declare.checkout import ROOT

ORDER = ("declare", "datasets", "models", "training", "store", "fused", "measures", "sweep")
"""rooms of the lab: each may import those before it; `fused` and `measures`, side by side, not each other"""
ARROWS = 21
LATE = {"torch", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "seaborn", "safetensors", "rich", "pooch", "PIL",
        "fcntl"}
"""packages that commands start without: slow to import, an extra, or not on every system"""


def modules(package: str) -> dict[str, Path]:
    paths = sorted((ROOT / package).rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


MODULES = {name: path for package in ("sharpness", "experiments", "analysis") for name, path in modules(package).items()}


def imports(name: str, *, in_functions: bool) -> Iterator[tuple[str, int]]:
    """Modules that `name` imports at its top, or in its functions, and the lines."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            found = [alias.name for alias in child.names] if isinstance(child, ast.Import) else []
            if isinstance(child, ast.ImportFrom):
                package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
                above = package.rsplit(".", child.level - 1)[0] if child.level else ""
                module = ".".join(filter(None, (above, child.module)))
                found = [full if (full := f"{module}.{alias.name}") in MODULES else module for alias in child.names]
            if inside == in_functions:
                yield from ((module, child.lineno) for module in found if module != name)
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return walk(ast.parse(MODULES[name].read_text("utf-8")), False)


TOP = {name: {module for module, _ in imports(name, in_functions=False)} for name in MODULES}
INSIDE = {name: list(imports(name, in_functions=True)) for name in MODULES}


def rooms(package: str, depth: int) -> dict[str, set[str]]:
    """Each room's imports, in functions or not, of other rooms of `package`."""
    found: dict[str, set[str]] = {}
    for name in MODULES:
        for other in TOP[name] | {module for module, _ in INSIDE[name]}:
            pair = [m.split(".") for m in (name, other) if m.startswith(f"{package}.") and m.count(".") >= depth]
            if other in MODULES and len(pair) == 2 and pair[0][depth] != pair[1][depth]:
                found.setdefault(pair[0][depth], set()).add(pair[1][depth])
    return found


def brought() -> dict[str, set[str]]:
    """The LATE packages that come with each module: imported at its top, or by what is imported there."""
    needs = {n: {".".join(m.split(".")[:k]) for m in (n, *TOP[n]) for k in range(1, m.count(".") + 2)} for n in MODULES}
    found = {name: {package for package in needs[name] if package in LATE} for name in MODULES}
    while (more := {n: found[n].union(*(found[m] for m in needs[n] if m in MODULES)) for n in MODULES}) != found:
        found = more
    return found


def test_rooms_of_the_lab() -> None:
    """A heap again: each room imports each, and a change anywhere may break anything."""
    found = rooms("experiments.lab", 2)
    assert found.keys() | set().union(*found.values()) == set(ORDER)
    up = [(a, b) for a, others in found.items() for b in others if ORDER.index(b) > ORDER.index(a)]
    assert up == [] and "fused" not in found["measures"]
    assert sum(map(len, found.values())) <= ARROWS, found


@pytest.mark.parametrize("package", ["sharpness", "experiments", "analysis"])
def test_no_circle_between_files(package: str) -> None:
    """Files that can only be understood, tested or loaded together; an import inside a function hides such a circle."""
    graph = {n: {m for m in TOP[n] | {m for m, _ in INSIDE[n]} if m in MODULES} for n in MODULES if n.startswith(package)}
    assert len(graph) > 30
    tuple(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_rooms_of_sharpness_form_no_circle() -> None:
    """Operators that need what is computed with them."""
    order = tuple(TopologicalSorter({a: others for a, others in rooms("sharpness", 1).items()}).static_order())
    assert order.index("problem") < order.index("operators") < order.index("flatness")


def test_packages_go_one_way() -> None:
    """A library that cannot be used alone; a bare GPU machine that needs pandas."""
    order = ("sharpness", "experiments", "analysis", "batchlab", "docs", "notebooks", "tests")
    for name in MODULES:
        tops = {module.partition(".")[0] for module in TOP[name] | {module for module, _ in INSIDE[name]}}
        assert not tops & {*order[order.index(name.partition(".")[0]) + 1 :]}, name
    assert TOP["experiments"] == TOP["experiments.lab"] == set()  # imported with each room


def test_imports_stand_at_the_top() -> None:
    """An import inside a function hides an arrow. It is there to start without a package of LATE, and for nothing else."""
    found = brought()
    assert [f"{name}:{line} {module}" for name in MODULES for module, line in INSIDE[name]
            if not found.get(module, {module.partition(".")[0]} & LATE) - found[name]] == []


def test_reading_records_needs_no_torch() -> None:
    """A laptop without torch could not read the results: every module of analysis, and every study."""
    names = [*modules("analysis"), "experiments.keskar2017", "experiments.lab.sweep.plan", "experiments.lab.store.records"]
    assert len(names) > 15
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
