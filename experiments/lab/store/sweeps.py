"""Sweeps that a store keeps: studies without a paper or claims, each a JSON file in `<store>/sweeps`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lab.declare.checkout import ROOT
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.study import Figure, Request, Scale, Stage, Study
from experiments.lab.declare.vocabulary import FIELDS
from experiments.lab.store.checksums import SCHEMA, with_checksum
from experiments.lab.store.files import StoreError, read_document, to_json, write_atomic

SCALE = "sweep"
"""the only scale of a sweep"""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
UNNAMED = ("model_sha256", "loss_sha256", "optimizer_sha256", "data_sha256", "train_draw", "seed")
"""fields that no title tells"""


@dataclass(frozen=True)
class Sweep:
    """What is trained: each of `cells` with `seeds` seeds, from the cell's own one on."""

    name: str
    cells: tuple[RunConfig, ...]
    seeds: int

    def runs(self, request: Request) -> list[RunConfig]:
        """Every run; of pilots, and of another number of seeds, as `request` says."""
        return [cell.replace(seed=cell.seed + seed) for cell in self.cells for seed in request.seed_range(self.seeds)]

    @property
    def content(self) -> tuple[list[str], int]:
        """What makes two sweeps one: where data lie now is no part of it."""
        return sorted(cell.run_id for cell in self.cells), self.seeds

    def varied(self) -> list[str]:
        """The fields in which cells differ."""
        return [name for name in FIELDS if name not in UNNAMED and len({getattr(cell, name) for cell in self.cells}) > 1]

    def about(self) -> str:
        """Fields and their values, in a line."""
        lists = [f"{name} {', '.join(_word(v) for v in dict.fromkeys(getattr(c, name) for c in self.cells))}"
                 for name in self.varied()]
        (first, *_) = self.cells
        return f"{first.model} on {first.dataset}; {'; '.join([*lists, f'{self.seeds} seeds'])}"

    def study(self) -> Study:
        """Itself as a study, which has one stage and one scale."""
        arms = tuple(name for name in self.varied() if name not in ("batch_size", "lr"))
        gap = (("arm", (*arms, "lr")),) if "lr" in self.varied() else ()
        return Study(
            name=self.name, title="A sweep" + (f" over {', '.join(self.varied())}" if self.varied() else ""),
            citation="No paper's claim", scales=(Scale(SCALE, self.about(), ""),),
            stages=(Stage("runs", lambda request: self.runs(request)),),
            figures=(Figure("heat_map", "heat_map", (("arm", arms),) if arms else ()),
                     Figure("generalization_gap", "generalization_gap", gap)),
        )


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def name_of(cells: Iterable[RunConfig], seeds: int) -> str:
    """The name of a sweep that was given none: of its content."""
    text = json.dumps(Sweep("", tuple(cells), seeds).content)
    return f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def kept(root: Path, cells: Sequence[RunConfig], seeds: int, name: str | None = None) -> Sweep:
    """The sweep of these cells, in the store at `root` from now on; one that is there already goes on.

    Raises `UsageError` for a name that cannot be, or is that of another sweep or of a study of the project.
    """
    sweep = Sweep(name or name_of(cells, seeds), tuple(dict.fromkeys(cells)), seeds)
    if NAME.fullmatch(sweep.name) is None or sweep.name == "all":
        raise UsageError(f"--name is {sweep.name[:60]!r}, but must be letters, digits, - _ and dots, such as first-look, not all")
    if (ROOT / "experiments" / f"{sweep.name}.py").is_file():
        raise UsageError(f"--name {sweep.name} is the name of a study of the project; take another")
    before = read(root, sweep.name)
    if before is not None and before.content != sweep.content:
        raise UsageError(f"the sweep {sweep.name} in {root} is another one ({_difference(before, sweep)}); give this one another "
                         "--name")
    if before is None:
        document = {"schema": SCHEMA, "sweep": sweep.name, "seeds": seeds, "cells": [cell.to_dict() for cell in sweep.cells]}
        (root / "sweeps").mkdir(exist_ok=True)
        write_atomic(_path(root, sweep.name), with_checksum(to_json(document)))
    return sweep


def _difference(before: Sweep, now: Sweep) -> str:
    """The first thing in which two sweeps differ."""
    if before.seeds != now.seeds:
        return f"its seeds are {before.seeds}, here {now.seeds}"
    for name in FIELDS:
        one, other = (list(dict.fromkeys(getattr(cell, name) for cell in sweep.cells)) for sweep in (before, now))
        if set(one) != set(other) and name != "dataset":
            return f"its {name} is {', '.join(map(_word, one))[:60]}, here {', '.join(map(_word, other))[:60]}"
    return "its fields are combined otherwise"


def read(root: Path, name: str) -> Sweep | None:
    """The sweep `name` of the store at `root`, None where there is none; raises `StoreError` where its file is damaged."""
    if NAME.fullmatch(name) is None:
        return None
    if (document := read_document(_path(root, name))) is None:
        return None
    try:
        return Sweep(name, tuple(RunConfig.from_dict(fields) for fields in document["cells"]), int(document["seeds"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{_path(root, name)} is no sweep ({' '.join(str(error).split())}); remove it and give the "
                         "command of the sweep again: its runs are kept") from error


def names(root: Path) -> list[str]:
    """Of every sweep that the store at `root` keeps."""
    return sorted(path.stem for path in (root / "sweeps").glob("*.json") if NAME.fullmatch(path.stem))


def _path(root: Path, name: str) -> Path:
    return root / "sweeps" / f"{name}.json"
