"""What a process of `lives` does to one toy run: train it until something happens."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from disk import FREEING, Disk, dies_at, fails_from
from toy_runs import toy_config, toy_data, toy_images

from experiments.__main__ import main
from experiments.lab import datasets
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import RunFolder, open_run
from experiments.lab.sweep import runner
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.tasks import Finished, Train
from experiments.lab.sweep.worker import run_task
from experiments.lab.training import gradient
from experiments.lab.training.loop import train

STEPS = 3
FLAGS = ("train", "--width", "16", "--depth", "2", "--batch-size", "16", "--lr", "0.05", "--momentum", "0.9",
         "--budget", "steps", "--steps", str(STEPS), "--json")
"""the command line of `disk_config()`"""


CHANGED = ((runner, "read"), (datasets, "load"), (RunFolder, "wants_checkpoint"))
"""what functions of this module replace"""


def disk_config() -> RunConfig:
    return toy_config(momentum=0.9, steps=STEPS)


def checkpoint_every(steps: int) -> None:
    """Write a checkpoint before each update whose number `steps` divides, in this process."""

    def wants(self: RunFolder, step: int) -> bool:
        self.report(step)
        return step > 0 and step % steps == 0

    RunFolder.wants_checkpoint = wants


def train_until(root: Path, fields: dict[str, Any], size: int, step: int, every: int, record_after: int = 30) -> None:
    """Train, checkpoints every so many steps, and be killed before update number `step`."""
    checkpoint_every(every)
    gradient.RECORD_AFTER = record_after
    config = toy_config(**fields)

    def report(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    folder = open_run(Store(root), config, Machine(), lambda: False, report)
    assert folder is not None
    folder.publish(train(config, Machine(), toy_data(config, size), folder))
    os.kill(os.getpid(), signal.SIGKILL)  # before the lease is released


def toy_task(root: Path) -> str:
    """The run of `disk_config` on the toy data, as a worker does it, checkpoints every second step; what it reports."""
    runner.read = lambda name, data_dir: toy_images()
    checkpoint_every(2)
    report = run_task(Train(disk_config()), Store(root), Machine(), Stopper(), None)
    return report.status if isinstance(report, Finished) else str(report)


def dying(root: Path, call: int, calls: Path | None = None, links: bool = True) -> None:
    """`toy_task` on a machine that dies at the given call; `calls` is told how many there were."""
    if not links:
        os.link = lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links"))
    disk = Disk(root, dies_at(call))
    toy_task(root)
    if calls is not None:
        calls.write_text(str(disk.calls))


def failing(root: Path, call: int, code: int, kind: str, messages: Path) -> None:
    """The same run by the command line on a disk that fails from the given call on, or once; exits with its status."""
    sys.stderr = messages.open("w")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    runner.read = datasets.load = lambda name, data_dir: toy_images()
    checkpoint_every(2)
    disk = Disk(root, fails_from(call, code, spares=FREEING if kind == "full" else (), once=kind == "once"))
    status = main([*FLAGS, "--store", str(root)])
    sys.stderr.close()
    messages.with_suffix(".calls").write_text(str(disk.calls))
    os._exit(status)


def limited(root: Path, size: int, messages: Path) -> None:
    """The same run under a true limit on the size of files, in bytes; its messages go through a pipe, which has none."""
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        with open(told) as pipe:
            text = pipe.read()
        messages.write_text(text)
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    os.close(told)
    sys.stderr, sys.stdout = open(tell, "w"), open(os.devnull, "w")  # noqa: SIM115
    runner.read = datasets.load = lambda name, data_dir: toy_images()
    checkpoint_every(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    status = main([*FLAGS, "--store", str(root)])
    sys.stderr.close()
    os._exit(status)


def commanded(folder: Path, argv: list[str], every: int, step: int | None, messages: Path) -> None:
    """The command line from within `folder`, checkpoints every so many steps, killed before update number `step`; exits with its
    status. Updates are recorded early, so that resumed runs mix replayed and eager ones."""
    os.chdir(folder)
    sys.stderr, sys.stdout = messages.open("w"), open(os.devnull, "w")  # noqa: SIM115
    gradient.RECORD_AFTER = 5
    checkpoint_every(every)
    wants = RunFolder.wants_checkpoint

    def dies(self: RunFolder, now: int) -> bool:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return wants(self, now)

    RunFolder.wants_checkpoint = dies
    status = main(argv)
    sys.stderr.close()
    os._exit(status)
