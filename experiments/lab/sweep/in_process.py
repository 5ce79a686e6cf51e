"""A sweep from Python or Jupyter, trained in this process: `from experiments import sweep`.

Functions of a notebook cannot be imported by workers. Store, bits and resuming are those of the command line.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.lab.datasets import DataError, Dataset, load
from experiments.lab.datasets.formats import READERS
from experiments.lab.datasets.own import assembled
from experiments.lab.declare.config import OWN, Machine, RunConfig
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.grid import grid
from experiments.lab.declare.session_code import in_session, session_name
from experiments.lab.declare.study import Request, Study
from experiments.lab.store.files import StoreError, write_atomic
from experiments.lab.store.records import IN_WORDS, Store
from experiments.lab.store.run_folder import Interrupted
from experiments.lab.store.sweeps import SCALE, Sweep, kept
from experiments.lab.sweep import launch
from experiments.lab.sweep.commands import MAX_SEEDS
from experiments.lab.sweep.plan import identified
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.progress import names_among
from experiments.lab.sweep.tasks import Busy, Failed, Train
from experiments.lab.sweep.worker import run_task
from experiments.lab.training.own_task import of_session


@dataclass(frozen=True)
class Runs:
    """A sweep whose runs are in a store: `analysis.load.of_sweep` reads them."""

    sweep: Sweep
    store: Path
    counts: Mapping[str, int]
    """runs by status"""

    @property
    def study(self) -> Study:
        return self.sweep.study()

    def __repr__(self) -> str:
        each = ", ".join(f"{count} {IN_WORDS.get(status, status)}" for status, count in self.counts.items())
        return f"{self.sweep.name}: {sum(self.counts.values())} runs in {self.store} ({each})"


def sweep(net: Any, data: Any, *, batch_sizes: Sequence[int], lrs: Sequence[float], seeds: int = 3, store: str | Path = "store",
          name: str | None = None, device: str = "cpu", micro_batch: int | None = None, quiet: bool = False,
          model_options: Mapping[str, Any] | None = None, **fields: Any) -> Runs:
    """Train `net` on `data` at every batch size and learning rate with `seeds` seeds, in this process; what the store has is not
    trained again.

    net: a function or class that returns the network, called with what its signature takes of `input_shape` and `outputs`, and
    with `model_options`; or the name of a built-in network. data: a pair (inputs, targets) of arrays or tensors, of which a fifth
    becomes the test examples; a mapping with `train`, `test` and perhaps `validation`, each a pair; a function that returns
    either; or the name of a data set. Arrays count by their content, and the store keeps a copy. fields: any field of a run
    (`experiments.lab.declare.config.RunConfig`), one value or several; `loss` and `optimizer` may be functions. One of `epochs`,
    `steps`, `train_loss` or `patience` says how long a run is.

    Interrupted, it writes a checkpoint, and the same call goes on. Raises `ConfigError`, `UsageError`, `DataError` or
    `StoreError`, one sentence.
    """
    launch.check_device(device)
    if not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"seeds is {seeds}, but must be from 1 to {MAX_SEEDS}")
    found = Store(Path(store).expanduser().resolve())
    named, dataset = _data(data, found.root)
    own = {part: _code(given, part) for part, given in {"model": net, **{p: fields[p] for p in OWN if p in fields}}.items()}
    options = " ".join(f"{key}={_text(value)}" for key, value in sorted((model_options or {}).items())) or None
    asked = {**fields, **own, "dataset": named, "batch_size": batch_sizes, "lr": lrs, "model_options": options}
    hashes: dict[str, str | None] = {}
    cells = [identified(of_session(cell, dataset), None, found, hashes) for cell in grid(asked)]
    machine = Machine(device=device, micro_batch=micro_batch)
    which = kept(found.root, cells, seeds, name)
    runs = which.runs(Request(SCALE))
    launch.check_data(runs, machine, found.root)
    with _alone(machine) as stopper:
        _train(runs, found, machine, stopper, quiet=quiet)
    records = [record for record in found.records(runs) if record is not None]
    counts = {status: sum(r.status == status for r in records) for status in dict.fromkeys(r.status for r in records)}
    return Runs(which, found.root, counts)


def _code(given: Any, part: str) -> Any:
    """A name as it is, a function or class by its name; several are a list."""
    if isinstance(given, list | tuple):
        return [_code(one, part) for one in given]
    return given if isinstance(given, str) else session_name(given, part)


def _text(value: Any) -> str:
    """As on a command line, where blanks separate options."""
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def _data(given: Any, root: Path) -> tuple[str, Dataset]:
    """The name of the data, and the data; arrays at hand are kept in the store."""
    if isinstance(given, str):
        return given, load(given)
    if callable(given):
        name = session_name(given, "data")
        if not in_session(name):
            return name, load(name)
        given = given()
    dataset = assembled("data", given)
    path, content = root / "data" / f"{dataset.sha256[:20]}.npz", io.BytesIO()
    if not path.is_file():
        splits = {"train": dataset.train, "test": dataset.test, "val": dataset.validation}
        arrays = {f"{axis}_{key}": array for key, split in splits.items() if split is not None
                  for axis, array in (("x", split.inputs), ("y", split.targets))}
        np.savez(content, **arrays)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content.getvalue())
    if READERS["npz"]("data", path).sha256 != dataset.sha256:
        raise DataError(f"{path} does not hold these arrays; remove it, and call again.")
    return f"npz:{path}", dataset


@contextlib.contextmanager
def _alone(machine: Machine) -> Iterator[Stopper]:
    """As in a worker: so many threads, and an interrupt writes a checkpoint first. Afterwards the process is as it was."""
    stopper, threads = Stopper(), torch.get_num_threads()
    backends: Any = torch.backends
    before = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.deterministic
    here = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, stopper) if here else None
    torch.set_num_threads(machine.threads)
    try:
        yield stopper
    except Interrupted:
        raise KeyboardInterrupt("a checkpoint is written; the same call goes on") from None
    finally:
        torch.set_num_threads(threads)
        backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.deterministic = before
        if here:
            signal.signal(signal.SIGINT, handler)


def _train(runs: Sequence[RunConfig], store: Store, machine: Machine, stopper: Stopper, *, quiet: bool) -> None:
    """Every run that the store lacks, one after the other; raises `StoreError` where some failed, once all were tried."""
    waiting = [config for config in runs if not store.finished(config.run_id)]
    shown, failures, total = names_among(runs), list[str](), len(waiting)
    if not quiet and total < len(runs):
        print(f"{len(runs) - total} of {len(runs)} runs are in {store.root} already", file=sys.stderr, flush=True)
    while waiting:
        config = waiting.pop(0)
        match run_task(Train(config), store, machine, stopper, None):
            case Busy():
                waiting.append(config)
                time.sleep(launch.BUSY_SECONDS)
                continue
            case Failed(why):
                failures.append(f"{shown.of(config)}: {why}")
        summary = store.summary(config.run_id)
        if not quiet and summary is not None:
            score = next((f", {words} {summary[key]:.4g}" for key, words in SCORES if summary.get(key) is not None), "")
            line = f"{total - len(waiting)} of {total}: {shown.of(config)}: {summary['status']}{score}"
            print(line, file=sys.stderr, flush=True)
    if failures:
        others = f", and {len(failures) - 1} runs more; those that did not are kept" if failures[1:] else ""
        raise StoreError(f"failed: {failures[0]}{others}")


SCORES = (("test_accuracy", "test accuracy"), ("test_r2", "test R^2"), ("test_loss", "test loss"))
