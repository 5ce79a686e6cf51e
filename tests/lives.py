"""Processes that start in milliseconds, forked from a server that has imported torch and read the data: to be killed.

A target must be a function of a module on the tests' path, because the server imports it by name.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import toy_sweep

HANG = 600
"""seconds after which a process hangs: at least ten times what any needs on a machine five times as slow"""
CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lives"])

for module in ("sharpness", "experiments.lab.measures.perform", "experiments.lab.sweep.runner", "safetensors.numpy", "typeguard",
               "toy_lives", "toy_owners"):
    importlib.import_module(module)  # once, and not in each process
torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1)], lr=1.0)  # which imports half of torch
toy_sweep.few("fashion-mini", None)


def ready() -> None:
    """Start the server, once; what it imports it finds by the environment."""
    path, here = os.environ.get("PYTHONPATH"), Path(__file__).resolve().parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


def start(target: Callable[..., None], *args: Any) -> ForkServerProcess:
    """A process that runs `target(*args)` in a group of its own."""
    ready()
    process = CONTEXT.Process(target=_lead, args=(target, args))
    process.start()
    assert process.pid is not None
    while process.is_alive() and not _leads(process.pid):
        time.sleep(0.001)
    return process


def run(target: Callable[..., None], *args: Any, seconds: float = HANG) -> int:
    """The exit status of a process that runs `target(*args)`; minus the signal that killed it."""
    process = start(target, *args)
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _lead(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written; only a power failure does
    toy_sweep.hurry()
    target(*args)


def sweep(root: Path, workers: int, messages: Path) -> None:
    """The toy study with workers that are forked here, not spawned, and write checkpoints as often as they can."""
    os.dup2(os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    os._exit(toy_sweep.main(root, workers))
