"""Runs studies. Without a command: lists the studies, their claims and state.

Exit status:
  0    finished
  1    something failed or is missing
  2    wrong usage
  130  Ctrl-C, or 143 SIGTERM; the same command goes on from the checkpoints
  141  nobody reads the output any more (`| head`)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.lab.datasets import DataError
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.declare.grid import read_fields
from experiments.lab.store.files import StoreError
from experiments.lab.sweep import commands as command
from experiments.lab.sweep import flags, printed, terminal
from experiments.lab.sweep.flags import OptionalInt, OptionalPath, OptionalText, Switch
from experiments.lab.sweep.launch import Stopped


@dataclass(frozen=True, kw_only=True)
class Common:
    store: Path = Path(os.environ.get("BATCHLAB_STORE") or "store")
    """folder of the runs; or set $BATCHLAB_STORE"""
    data_dir: OptionalPath = None
    """folder of the data sets (default: $BATCHLAB_DATA_DIR, else the user's cache)"""
    json: Switch = False
    """print one JSON document on stdout and nothing else"""


@dataclass(frozen=True, kw_only=True)
class Overview(Common):
    """List the studies, their claims and their state."""

    studies: OptionalPath = None
    """folder of your own studies (default: $BATCHLAB_STUDIES, else none)"""


@dataclass(frozen=True, kw_only=True)
class OfStudy(flags.Task, Common):
    study: tyro.conf.Positional[str]
    """name of a study, or of a sweep in the store"""
    studies: OptionalPath = None
    """folder of your own studies (default: $BATCHLAB_STUDIES, else none)"""
    scale: OptionalText = None
    """quick, laptop, overnight, gpu or paper, or another scale of the study's (default: its only one, if it has one)"""
    seeds: OptionalInt = None
    """seeds per cell (default: as the study declares; verdicts always want the declared number)"""
    pilot: Switch = False
    """seeds from 1000 up, which no verdict uses: to size a study before its claims are fixed"""
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """only runs whose field equals a value, as FIELD=VALUE"""


@dataclass(frozen=True, kw_only=True)
class Plan(OfStudy):
    """List the runs of a study and which of them exist."""


@dataclass(frozen=True, kw_only=True)
class Status(OfStudy):
    """Count the runs of a study by stage and state; name those that are not finished."""


@dataclass(frozen=True, kw_only=True)
class Run(OfStudy):
    """Train and measure what a study still lacks."""

    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    workers: OptionalInt = None
    """worker processes of one thread each (default: one per core on cpu, one on cuda)"""
    fused: OptionalInt = None
    """runs trained as one program at most (default: alone on cpu, on cuda as many as a short measured trial finds to pay)"""
    micro_batch: OptionalInt = None
    """examples per forward pass (default: the whole batch)"""


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    config: RunConfig
    device: str
    threads: int
    micro_batch: int | None


def train_options(given: Annotated[Any, tyro.conf.arg(name="", constructor=flags.grouped(Common))]) -> Train:
    """Train one run, here, and print its summary."""
    values = flags.values(given)
    others = {name: values.pop(name) for name in ("store", "data_dir", "json", "device", "threads", "micro_batch")}
    given = values.pop("model_option")
    return Train(config=RunConfig(**values, model_options=" ".join(sorted(given)) or None), **others)


@dataclass(frozen=True, kw_only=True)
class OfSweep:
    seeds: int = 3
    """runs of each combination, with the seeds from --seed on"""
    name: OptionalText = None
    """name of the sweep (default: one made of its content)"""
    plan: Switch = False
    """keep the sweep and list its runs, but train none"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    workers: OptionalInt = None
    """worker processes of one thread each (default: one per core on cpu, one on cuda)"""
    fused: OptionalInt = None
    """runs trained as one program at most (default: as of `run`)"""
    micro_batch: OptionalInt = None
    """examples per forward pass (default: the whole batch)"""


@dataclass(frozen=True, kw_only=True)
class Sweep(Common, OfSweep):
    fields: dict[str, Any]
    """fields of the runs, each with its value or values"""


def sweep_options(given: Annotated[Any, tyro.conf.arg(name="", constructor=flags.grouped(Common, OfSweep))]) -> Sweep:
    """Train every combination of values, lists with commas between."""
    values = flags.values(given)
    others = {field.name: values.pop(field.name) for field in dataclasses.fields(Sweep) if field.name != "fields"}
    return Sweep(fields=read_fields(values), **others)


def sweep(options: Sweep) -> tuple[int, Any]:
    """Keep the sweep in the store, and make what it lacks."""
    name = command.sweep(options)
    common = {"study": name, "store": options.store, "data_dir": options.data_dir, "json": options.json}
    if options.plan:
        return command.plan(Plan(**common))
    machine = {name: getattr(options, name) for name in ("device", "workers", "fused", "micro_batch")}
    return command.run(Run(**common, **machine))


@dataclass(frozen=True, kw_only=True)
class Measure(Common):
    """Measure stored runs."""

    run: tyro.conf.Positional[str]
    """run id, or the beginning of one"""
    metrics: tuple[str, ...] = ("lambda_max", "phi_full", "phi_subspace")
    """names, or `all` (an unknown one is answered with the list)"""
    examples: OptionalInt = None
    """measure on so many training examples (default: for each metric what `python -m sharpness --list` says)"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    threads: int = 1
    """threads of the process"""


@dataclass(frozen=True, kw_only=True)
class StoreCommand(Common):
    """Check the records of a store, or move them between machines."""

    action: tyro.conf.Positional[Literal["check", "export", "import"]]
    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[PATH]", help_behavior_hint="")] = None
    """archive to write or read (export, import); with --published a study (default: every one)"""
    published: Switch = False
    """import: the runs that the project publishes of a study, without weights, so that it goes on from them"""
    scale: OptionalText = None
    """import --published: of this scale alone"""
    repair: Switch = False
    """check: move damaged records into the store's folder `damaged`, so that `run` makes them anew"""


COMMANDS: dict[str, tuple[type[Common], Callable[[Any], tuple[int, Any]]]] = {
    "plan": (Plan, command.plan),
    "run": (Run, command.run),
    "status": (Status, command.status),
    "train": (Train, command.train),
    "sweep": (Sweep, sweep),
    "measure": (Measure, command.measure),
    "store": (StoreCommand, command.store),
}


def main(argv: list[str] | None = None, prog: str = "python -m experiments") -> int:
    """Run one command line; returns the exit status. Errors of the user become one sentence on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments and arguments[0] in terminal.ANALYSIS:
            raise UsageError(f"{arguments[0]} is a command of `python -m analysis`")
        if not arguments or (arguments[0].startswith("--") and arguments[0] != "--help"):
            plain = not arguments or arguments == ["--json"]  # tyro would take a tenth of the time
            options = Overview(json=bool(arguments)) if plain else tyro.cli(Overview, prog=prog, args=arguments)
            options = terminal.expanded(options)
            with contextlib.redirect_stdout(sys.stderr):  # what studies print is no part of the document
                answer = command.overview(options)
            return _print(*answer, "overview", options)
        options = tyro.extras.subcommand_cli_from_dict(
            {name: {Train: train_options, Sweep: sweep_options}.get(kind, kind) for name, (kind, _) in COMMANDS.items()},
            prog=prog,
            description=__doc__,
            args=arguments,
            config=(tyro.conf.EnumChoicesFromValues,),
        )
        options = flags.with_task(terminal.expanded(options))
        name, action = next((name, action) for name, (kind, action) in COMMANDS.items() if type(options) is kind)
        with contextlib.redirect_stdout(sys.stderr):
            answer = action(options)
        return _print(*answer, name, options)
    except (UsageError, ConfigError) as error:
        return terminal.complain(error, 2)
    except BrokenPipeError:
        raise  # to `terminal.run`
    except (StoreError, DataError, OSError) as error:
        return terminal.complain(error, 1)
    except ImportError as error:
        return terminal.complain(terminal.missing(error), 1)
    except Stopped as stopped:
        print("stopped; the same command continues from the checkpoints", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run_study(name: str) -> int:
    """What `python experiments/<study>.py ...` does, or that of a study of the user's: `run` for that study."""
    folder = Path(sys.argv[0]).resolve().parent
    own = [] if folder == Path(__file__).resolve().parent else ["--studies", str(folder)]
    return terminal.run(lambda: main(["run", name, *own, *sys.argv[1:]]))


def _print(status: int, document: Any, name: str, options: Common) -> int:
    terminal.show(json.dumps(document, indent=1, sort_keys=True) if options.json else printed.text(name, document, options))
    return status


if __name__ == "__main__":
    sys.exit(terminal.run(main))
