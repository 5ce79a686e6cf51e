"""Stores of toy runs: start one, finish one, look at every file, rewrite a lease."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_runs import toy_data

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import Interrupted, RunFolder, open_run
from experiments.lab.training.loop import train


def start(store: Store, config: RunConfig, stop: Callable[[], bool] = lambda: False) -> RunFolder:
    folder = open_run(store, config, Machine(), stop, lambda step: None)
    assert folder is not None
    return folder


def finish(store: Store, config: RunConfig) -> Path:
    """Train and publish `config` on the toy data; returns its folder."""
    folder = start(store, config)
    assert folder.publish(train(config, Machine(), toy_data(config), folder))
    folder.close()
    return folder.path


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def overwrite_lease(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stopped_twice(store: Store, config: RunConfig) -> Path:
    """A run with two checkpoints, after 3 and 6 updates."""
    for stop in (3, 6):
        now = [0]
        folder = open_run(store, config, Machine(), lambda: now[0] == stop, lambda step: now.__setitem__(0, step))  # noqa: B023
        assert folder is not None
        with pytest.raises(Interrupted):
            train(config, Machine(), toy_data(config), folder)
        folder.close()
    return store.folder(config.run_id)
