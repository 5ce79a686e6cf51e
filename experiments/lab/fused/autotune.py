"""How many runs to train as one program, found by a short measurement and remembered for this machine, outside the store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.lab.declare.config import Machine, RunConfig, program
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.store.files import StoreError, write_atomic
from experiments.lab.store.provenance import hardware
from experiments.lab.training.data import Data
from experiments.lab.training.initial import initial_model
from experiments.lab.training.memory import is_out_of_memory

PAYS = 1.1
"""a larger program must be this much faster per run: near a tie the choice would be chance"""
WARM_UP = 6
UPDATES = 10
REPEATS = 3


def members_that_pay(configs: Sequence[RunConfig], machine: Machine, data: Data, remembered: Path | None = None) -> int:
    """Runs in one program that are fastest per run, up to all of `configs`; 1 where none beats training alone by `PAYS`.

    On a CPU the answer is 1 without a measurement: replayed updates of single runs were 1.0 to 3.7 times as fast as fused ones
    for every network and batch size that was measured.
    """
    if len(configs) == 1 or not data.task.plain:
        return 1
    if machine.fused is not None:
        return min(machine.fused, len(configs))
    if not machine.device.startswith("cuda"):
        return 1
    path = cache() if remembered is None else remembered
    facts = [str(program(configs[0])), len(configs), hardware(machine.device), torch.__version__, machine.micro_batch,
             machine.graphs]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]
    known = {} if path is None else _read(path)
    if key not in known:
        known |= {key: fastest(configs, machine, data)}
        if path is not None:
            with contextlib.suppress(OSError, StoreError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, json.dumps(known, indent=1).encode())
    return known[key]


def fastest(configs: Sequence[RunConfig], machine: Machine, data: Data) -> int:
    """The number of members with the least time per update of a member, by doubling until it pays no more."""
    best, least = 1, seconds_per_update(configs[:1], machine, data)
    count = 2
    while best * 2 >= count and count < 2 * len(configs):
        size = min(count, len(configs))
        try:
            seconds = seconds_per_update(configs[:size], machine, data)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                break
            raise
        if seconds * PAYS < least:
            best, least = size, seconds
        count *= 2
    return best


def seconds_per_update(configs: Sequence[RunConfig], machine: Machine, data: Data) -> float:
    """Median seconds of one member's update, compilation and capture not counted."""
    engine = fused_engine(configs, machine, data, [initial_model(config, machine, data) for config in configs])
    engine.gradient.record_after = 2
    engine.advance(WARM_UP)
    seconds = []
    for _ in range(REPEATS):
        _wait(machine)
        started = time.perf_counter()
        engine.advance(engine.step + UPDATES)
        _wait(machine)
        seconds.append((time.perf_counter() - started) / UPDATES / len(configs))
    return statistics.median(seconds)


def cache() -> Path | None:
    """None for a user without a home folder."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "batchlab" / "trials.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, int) and v >= 1} if isinstance(found, dict) else {}


def _wait(machine: Machine) -> None:
    if machine.device.startswith("cuda"):
        torch.cuda.synchronize()
