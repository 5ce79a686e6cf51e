"""What `plan` and `run` saw of a user's own task, so that results are read without running the user's code.

`<store>/tasks.json` holds the hash of each source and of each data set by its name, what the data are like, and initial losses by
the id of the run that they begin. It is for this machine alone, as data.json: where it is missing or damaged nothing is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.own_code import is_own, is_own_data
from experiments.lab.declare.own_settings import Facts
from experiments.lab.store.files import StoreError, to_json, write_atomic

BUILT_IN = Facts("classes", images=True, outputs=10, train=None, validation=None)
"""of the data that are known by name, as the settings of a study need them"""
PARTS = ("hashes", "data", "losses")
PARTS_OF_TASK = (("model", "model"), ("loss", "loss"), ("optimizer", "optimizer"), ("data", "dataset"))
"""part of a task, and the field of a run that names it"""


@dataclasses.dataclass
class Notes:
    """The notes of the store at `root`."""

    root: Path
    hashes: dict[str, str]
    """`model NAME`, `loss NAME`, `optimizer NAME` and `data NAME` -> SHA-256 when it was last planned"""
    data: dict[str, dict[str, Any]]
    """name of a data set -> `Facts`"""
    losses: dict[str, float]
    """run id -> its initial training loss"""

    @classmethod
    def read(cls, root: Path) -> Notes:
        try:
            found = json.loads((root / "tasks.json").read_bytes())
            return cls(root, *(dict(found[part]) for part in PARTS))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls(root, {}, {}, {})

    def write(self) -> None:
        """A store that cannot be written is none the worse."""
        document = {part: getattr(self, part) for part in PARTS}
        if self.root.is_dir():
            with contextlib.suppress(OSError, StoreError):
                write_atomic(self.root / "tasks.json", to_json(document), durable=False)

    def facts(self, dataset: str) -> Facts:
        """Of a data set; raises `UsageError` where the store was never asked for it."""
        if not is_own_data(dataset):
            return BUILT_IN
        try:
            return Facts(**self.data[dataset])
        except (KeyError, TypeError):
            raise UsageError(f"nothing is known of the data {dataset} in the store {self.root}; {_LOOK}") from None

    def check(self, config: RunConfig) -> None:
        """Raise `UsageError` where the hash of a part of `config` that is the user's is not known."""
        for part, field in PARTS_OF_TASK:
            name = getattr(config, field)
            if (is_own_data(name) if part == "data" else is_own(name)) and f"{part} {name}" not in self.hashes:
                raise UsageError(f"nothing is known of {part} {name} in the store {self.root}; {_LOOK}")

    def initial_loss(self, run_id: str) -> float:
        """Raises `UsageError` where it was never measured."""
        if run_id not in self.losses:
            raise UsageError(f"the initial loss of this task is not known in the store {self.root}; {_LOOK}")
        return float(self.losses[run_id])


_LOOK = "`python -m experiments plan` or `run` of the same task looks at it (where the store exists)"
