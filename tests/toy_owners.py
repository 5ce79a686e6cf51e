"""Processes of `lives` that share a store: they lease, train by a stub, and publish as workers do."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from disk import Disk
from toy_runs import toy_config

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.store import leases as lease
from experiments.lab.store.records import Store
from experiments.lab.sweep import runner
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.tasks import Busy, Finished, Train
from experiments.lab.sweep.worker import run_task
from experiments.lab.training.outcome import Outcome


def shared_config(seed: int) -> RunConfig:
    return toy_config(seed=seed, steps=1)


def share(root: Path, runs: int, number: int, told: Path, stops: float) -> None:
    """Do `runs` runs with whoever else does; `told` gets a line a training. With a chance of `stops` a call that changes a
    file stops the process, with fifty times that a training; it then counts as one of another machine."""
    chance, store = random.Random(number), Store(root)
    lines = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    me = torch.tensor(os.getpid())

    def stub(configs: Any, machine: Any, data: Any, logs: Any, parents: Any, ended: Any, engine: Any) -> None:
        (config,), (log,) = configs, logs
        os.write(lines, f"{config.seed} {number}\n".encode())
        log.load()
        log.row({"kind": "train", "step": 1, "pid": os.getpid()})
        time.sleep(chance.uniform(0, 0.01))
        if chance.random() < 50 * stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        ended(0, Outcome("done", None, {"steps": 1, "pid": os.getpid()}, {"pid": me}, {"pid": me}))

    runner.train_group, runner.prepare, runner.read = stub, lambda *_: None, lambda *_: None
    if stops:
        lease._machine = lambda: f"machine {number}"
        lease.EXPIRY, lease.TOUCH, lease.LOCK_SECONDS = 0.2, 0.05, 0.2

        def stop(call: int, name: str) -> None:
            if chance.random() < stops:
                os.kill(os.getpid(), signal.SIGSTOP)

        Disk(root, stop)
    waiting = [shared_config(seed) for seed in range(runs)]
    chance.shuffle(waiting)
    while waiting:
        config = waiting.pop()
        report = run_task(Train(config), store, Machine(), Stopper(), None)
        if report == Busy():
            waiting.insert(chance.choice((0, len(waiting))), config)
            time.sleep(0.002)
        elif report != Finished():
            raise AssertionError(report)


def contend(folders: Sequence[Path], number: int, wins: Path, barrier: Any, locks: bool) -> None:
    """Ask for the lease of each folder at the same instant as others do; write down which were got."""
    chance, truncate = random.Random(number), os.ftruncate

    def hesitant(descriptor: int, length: int) -> None:  # between the look and the change: where a race is lost
        time.sleep(chance.uniform(0, 0.002))
        truncate(descriptor, length)

    os.ftruncate = hesitant
    if not locks:
        fcntl.flock = lambda *_: None
    got = []
    for folder in folders:
        barrier.wait(60)
        owned = lease.acquire(folder)
        barrier.wait(60)  # nobody lets go before everybody asked
        if owned is not None:
            got.append(folder.name)
            assert owned.held() or not locks
    wins.write_text(json.dumps(got))
