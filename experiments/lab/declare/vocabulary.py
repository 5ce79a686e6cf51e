"""The names that a declaration may use. Those of `analysis` and of `sharpness` are read from their source: figures need
matplotlib and metrics torch, and a plan needs neither."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from experiments.lab.declare.checkout import ROOT
from experiments.lab.declare.config import RunConfig

SUMMARY = {
    "status": "str", "reason": "str", "steps": "Int64", "examples": "Int64", "epochs": "float64", "seconds": "float64",
    "train_loss": "float64", "train_accuracy": "float64", "test_loss": "float64", "test_accuracy": "float64",
    "validation_loss": "float64", "validation_accuracy": "float64", "gap_accuracy": "float64", "gap_loss": "float64",
    "distance_from_start": "float64", "commit": "str", "device": "str", "hardware": "str",
}
"""what the runs table takes from a run's summary, and its type there"""
FIELDS = tuple(field.name for field in dataclasses.fields(RunConfig))
COLUMNS = {f"target_{f.name}" if f.name in SUMMARY else f.name: str(f.type) for f in dataclasses.fields(RunConfig)}
"""columns of the runs table that hold config fields, and the fields' types"""
VALUES = (*(name for name, kind in SUMMARY.items() if kind != "str"),
          *(name for name, kind in COLUMNS.items() if kind.removesuffix(" | None") in ("int", "float", "bool")))
"""what a run has of every claim's values without being measured"""
GATES = ("min_seeds", "matched", "status", "converged", "edge_lr")
TESTS = ("welch", "cluster-bootstrap")


@dataclasses.dataclass(frozen=True)
class Options:
    """What something takes by name: `kinds` are the types as they are written, where they are."""

    kinds: dict[str, str]
    required: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a declaration may say of a metric."""

    runs: int
    """1, or 2 for a metric of a pair"""
    options: Options
    version: int
    """of its meaning, which is part of a measurement's id"""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist, with the nearest one that does."""
    names = tuple(known)
    near = get_close_matches(str(name), names, 1)
    return f"there is no {what} {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}")


@functools.cache
def metrics() -> dict[str, Metric]:
    """Every metric: the rows of `sharpness.metrics`, which all take `examples` and `seed`, and those of
    `experiments.lab.measures.registry`."""
    library, own = ROOT / "sharpness" / "metrics.py", ROOT / "experiments" / "lab" / "measures" / "registry.py"
    return rows(library.read_bytes(), {"examples": "int", "seed": "int"}, ("examples",)) | rows(own.read_bytes())


def rows(source: str | bytes, kinds: Mapping[str, str] | None = None, required: tuple[str, ...] = ()) -> dict[str, Metric]:
    """The metrics that a module's source has a row `Metric("name", ..., options={...}, runs=..., version=...)` of; `kinds` and
    `required` are of the options that all have."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Metric" and isinstance(node.args[0], ast.Constant):
            row = {keyword.arg: keyword.value for keyword in node.keywords}
            options = {str(name): value for name, value in _entries(row.get("options"))}
            types = {name: getattr(value, "id", None) or type(ast.literal_eval(value)).__name__
                     for name, value in options.items()}
            chosen = tuple(name for name, value in options.items() if isinstance(value, ast.Name))
            runs, version = (ast.literal_eval(row[name]) if name in row else 1 for name in ("runs", "version"))
            found[str(node.args[0].value)] = Metric(runs, Options({**(kinds or {}), **types}, required + chosen), version)
    return found


@functools.cache
def statistics() -> dict[str, Options]:
    """The statistics of families of runs (`analysis.families.STATISTICS`)."""
    tree = _parsed(ROOT / "analysis" / "families.py")
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    found = {}
    for name, value in _entries(_assigned(tree, "STATISTICS")):
        own = functions[getattr(value, "id", "")]
        kinds = {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in own.kwonlyargs}
        found[str(name)] = Options(kinds, tuple(n for n, d in zip(kinds, own.kw_defaults, strict=True) if d is None))
    return found


@functools.cache
def figures() -> dict[str, Options]:
    """The kinds of figures (modules of `analysis.figures` with `settings`) and the options of each."""
    folder = ROOT / "analysis" / "figures"
    shared = _parsed(folder / "shared.py")
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = _parsed(path)
        if (function := next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "settings"), None)) is None:
            continue
        names: list[str] = []
        for node in ast.walk(function):
            if isinstance(node, ast.Return):
                for name, value in _entries(node.value):  # **CHOICE has no name of its own
                    names += [name] if name else [str(n) for n, _ in _entries(_assigned(shared, getattr(value, "id", "")))]
        found[path.stem] = Options(dict.fromkeys(names, ""))
    return found


DRAWN = {
    ("learning_curves", "values"): "LABELS", ("learning_curves", "x"): "AXES", ("generalization_gap", "quantities"): "LABELS",
}
"""options of figures whose names are those of one table in their module"""


def drawn(kind: str, option: str) -> tuple[str, ...]:
    """The names that such an option may hold."""
    table = _assigned(_parsed(ROOT / "analysis" / "figures" / f"{kind}.py"), DRAWN[kind, option])
    return tuple(str(name) for name, _ in _entries(table))


def _parsed(path: Path) -> ast.Module:
    """The source of a module; nothing where it is not installed."""
    return ast.parse(path.read_bytes() if path.exists() else "")


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """What a module assigns to `name`."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in {getattr(target, "id", None) for target in targets}:
            return node.value
    return None


def _entries(node: ast.expr | None) -> list[tuple[str | None, ast.expr]]:
    """The names and values that a dict is written with."""
    if not isinstance(node, ast.Dict):
        return []
    names: Collection[str | None] = [str(key.value) if isinstance(key, ast.Constant) else None for key in node.keys]
    return list(zip(names, node.values, strict=True))
