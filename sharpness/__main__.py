"""Measures curvature and flatness of a model at its present weights.

Exit status:
  0    finished; a metric without meaning for this model and data says so
  1    a metric is not finite or cannot be true, a damaged file, no memory left
  2    wrong usage; also model, loss, data and weights that do not fit
  130  Ctrl-C, or 143 SIGTERM: what is measured is printed, with --json nothing
  141  nobody reads the output any more (`| head`)
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from safetensors import SafetensorError, safe_open
from torch import nn

from sharpness.cost import CostEstimate, cost_estimate
from sharpness.metrics import Metric
from sharpness.panels import Measured, choose, panel
from sharpness.problem.given import given_data
from sharpness.problem.losses import mean_loss
from sharpness.problem.named import brief, called, named, value_of
from sharpness.problem.problem import Loss
from sharpness.problem.progress import Lines

OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
"""what is left out has a meaning of its own, which the flag's text says"""
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
"""off unless it is named"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure curvature and flatness of a model on data."""

    model: OptionalText = None
    """MODULE:NAME of the model, or of a function or class that gives it, called with what it takes of input_shape and outputs
    (of arrays) and with every --model-option; the current directory can be imported from"""
    model_option: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """what else the model's function is called with"""
    data: OptionalText = None
    """MODULE:NAME of a pair of arrays or tensors (inputs, targets), of a mapping with such pairs as train, test and perhaps
    validation (train is measured), of a list or loader of batches, or of a function that gives one; uint8 images in either axis
    order are normalised as in training"""
    loss: OptionalText = None
    """cross_entropy, mse or bce; MODULE:NAME of the loss of (outputs, targets), or of a function or class that gives it; or a
    name of torch.nn.functional or torch.nn, such as l1_loss (default: cross_entropy)"""
    weights: OptionalPath = None
    """.safetensors file of the model's weights (default: those that the model comes with)"""
    metrics: tuple[str, ...] = ("all",)
    """all, or names of the table that --list prints, apart or with commas between"""
    examples: OptionalInt = None
    """measure on this many examples, drawn at random (default: for each metric what the table states)"""
    params: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """names of the parameters that count (default: all with requires_grad)"""
    batch_size: OptionalInt = None
    """size of the chunks that a pair of tensors is cut into (default: what suits the machine)"""
    weight: OptionalText = None
    """what share of the mean a batch has: examples, tokens (targets that are neither -100 nor NaN), or MODULE:NAME of a
    function of (inputs, targets) (default: examples, where the loss is a mean over them)"""
    mode: Literal["eval", "train"] = "eval"
    """mode of batch normalisation and dropout"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    seed: int = 0
    """seed of everything that is drawn"""
    json: Switch = False
    """print one JSON document on stdout and nothing else"""
    list: Switch = False
    """print the table of metrics and stop"""
    plan: Switch = False
    """print how long each metric will take, by one pass, one gradient and one product, and stop"""


class UsageError(Exception):
    """The command cannot be carried out as given; the message is one sentence."""


class DamagedError(Exception):
    """A file cannot be used; the message is one sentence."""


class Terminated(BaseException):
    """SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status. Errors of the user become one sentence on stderr."""
    options = tyro.cli(Options, prog="python -m sharpness", description=__doc__, args=argv)
    done: list[Measured] = []
    try:
        with _terminable():
            chosen = _chosen(options.metrics)
            if options.list:
                _show(_listed(chosen, as_json=options.json))
                return 0
            with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no result
                arguments = _arguments(options)
                planned = _checked(lambda: cost_estimate(*arguments[:3], **arguments[3]))
                if not options.plan:
                    for entry in _with_progress(chosen, arguments, planned):
                        done.append(entry)
            if options.plan:
                _show(json.dumps(planned.to_dict(), indent=1) if options.json else _planned(planned))
                return 0
    except UsageError as error:
        return _complain(error, 2)
    except DamagedError as error:
        return _complain(error, 1)
    except ImportError as error:  # the user's own are in a UsageError
        return _complain(f"the package {error.name or 'needed'} cannot be imported ({error}); pip install batchlab", 1)
    except (MemoryError, torch.OutOfMemoryError):
        return _complain(f"out of memory after {len(done)} metrics: use fewer --examples or a smaller --batch-size", 1)
    except (KeyboardInterrupt, Terminated) as stop:
        if done and not options.json:
            _show(_table(done))
        return 143 if isinstance(stop, Terminated) else 130
    _show(json.dumps([e.to_dict() for e in done], indent=1) if options.json else _table(done))
    return int(any(_failed(entry) for entry in done))


Arguments = tuple[nn.Module, Loss, Any, dict[str, Any]]


def _arguments(options: Options) -> Arguments:
    """Model, loss and data, and what else `panel` takes."""
    if options.model is None or options.data is None:
        raise UsageError("--model and --data are needed, each as MODULE:NAME; --list shows the metrics")
    try:
        data, facts = given_data(_itself(options.data, "--data"), f"--data {options.data}")
        model, loss = _model(options, facts), mean_loss(options.loss)
        weight = named(options.weight, "--weight") if options.weight and ":" in options.weight else options.weight
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.weights is not None:
        _load(model, _expanded(options.weights))
    more: dict[str, Any] = {
        "metrics": _split(options.metrics), "examples": options.examples, "params": options.params or None,
        "batch_size": options.batch_size, "mode": options.mode, "seed": options.seed, "weight": weight,
    }
    try:
        model = model.to(options.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UsageError(f"--device {options.device}: the model cannot be moved there ({brief(error)})") from error
    return model, loss, data, more


def _itself(where: str, option: str) -> Any:
    """What MODULE:NAME is, or what the function or class of that name gives."""
    found = named(where, option)
    return called(found, where, option) if inspect.isroutine(found) or isinstance(found, type) else found


def _model(options: Options, facts: Mapping[str, Any]) -> nn.Module:
    """The model, made of what its function takes of the data's shapes and of the options."""
    where, given = str(options.model), dict[str, Any]()
    for text in options.model_option:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise UsageError(f"--model-option is {text!r}, but must be NAME=VALUE, as in width=64")
        given[name] = value_of(value)
    model = named(where, "--model")
    if not isinstance(model, nn.Module) or given:
        model = called(model, where, "--model", available=facts, options=given)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {where} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _checked(step: Callable[[], Any]) -> Any:
    """What a wrong model, loss or data raise, in one sentence."""
    try:
        return step()
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        said = str(error) if isinstance(error, ValueError) else brief(error)
        raise UsageError(f"model, loss and data do not fit: {said}") from error


def _load(model: nn.Module, path: Path) -> None:
    """Weights from a safetensors file: every name, no other, in the shapes of the model."""
    if not path.is_file():
        raise UsageError(f"--weights {path} cannot be read: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors ({brief(error)})") from error
    wanted = model.state_dict(keep_vars=True)
    hidden = {name: value for name, value in model.named_buffers() if name not in wanted and name in tensors}
    # Tied tensors are in the file once, under any of their names.
    known = {id(wanted[name]) for name in tensors if name in wanted}
    missing = [name for name, t in wanted.items() if id(t) not in known]
    wanted |= hidden  # buffers that `state_dict` leaves out, where the file has them
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise UsageError(f"{path} has {unknown[0]!r}, which the model lacks ({len(unknown)} such names)")
    if missing:
        raise UsageError(f"{path} lacks {missing[0]!r} of the model ({len(missing)} such names)")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)} in the file and {list(wanted[name].shape)} in the model"
            raise UsageError(f"{path}: {name!r} is {shapes}")
        if not torch.isfinite(tensor).all():
            raise DamagedError(f"{path}: {name!r} contains NaN or infinity")
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(f"--weights {path} cannot be expanded ({error}); write the whole path") from error


def _split(names: Sequence[str]) -> list[str]:
    return [name for word in names for name in word.split(",") if name]


def _chosen(names: Sequence[str]) -> tuple[Metric, ...]:
    try:
        return choose(_split(names))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _with_progress(chosen: Sequence[Metric], arguments: Arguments, planned: CostEstimate) -> Iterator[Measured]:
    """Each metric as it is measured, with what is under way and the time left on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    started, done = time.monotonic(), 0.0
    model, loss, data, more = arguments
    console = Console(stderr=True)
    what, left = TextColumn("{task.description}"), TextColumn("{task.fields[left]}")
    columns = (what, BarColumn(), TimeElapsedColumn(), left)
    counts = f"{planned.passes} passes, {planned.gradients} gradients, {planned.products} products"
    print(f"metrics: {len(chosen)}, at most about {planned.value:.0f} s ({counts})", file=sys.stderr, flush=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=planned.value, left=f"about {planned.value:.0f} s left")
        lines: list[Lines] = [Lines()]

        def within(steps: int, total: int | None, name: str) -> None:
            if not console.is_terminal:
                lines[-1](steps, total, name)
            bar.update(task, left=f"{name}: {steps}{f' of {total}' if total else ''}")

        entries = _checked(lambda: panel(model, loss, data, progress=within, **more))
        for number, metric in enumerate(chosen, 1):
            bar.update(task, description=f"{number}/{len(chosen)} {metric.name}")
            lines.append(Lines())
            entry = next(entries)
            done += planned.metrics[metric.name]
            elapsed = time.monotonic() - started
            ahead = (planned.value - done) * (elapsed / done if done else 1.0)
            text = f"about {max(ahead, 0.0):.0f} s left"
            bar.update(task, completed=done, left=text)
            if not console.is_terminal:
                took = f"{metric.name} in {entry.seconds:.1f} s, {elapsed:.0f} s elapsed"
                print(f"{number} of {len(chosen)}: {took}, {text}", file=sys.stderr, flush=True)
            yield entry


def _planned(planned: CostEstimate) -> str:
    """A row for each metric, and what was timed."""
    width = max(map(len, planned.metrics))
    rows = [f"{name.ljust(width)}  {seconds:8.1f} s" for name, seconds in planned.metrics.items()]
    one = f"a pass {planned.pass_seconds:.2g} s, a gradient {planned.gradient_seconds:.2g} s, a product"
    timed = f"timed on {planned.examples} examples: {one} {planned.product_seconds:.2g} s"
    return "\n".join([*rows, f"{'in all, at most about'.ljust(width)}  {planned.value:8.1f} s", timed])


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what is under way by an exception, so that it is cleaned up like Ctrl-C's."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failed(entry: Measured) -> bool:
    return entry.status in ("nonfinite", "impossible", "failed")


def _table(entries: Sequence[Measured]) -> str:
    """A row for each metric; below, why some have no value, each reason once."""
    head = ("metric", "value", "standard error", "status", "examples", "seconds")
    rows: list[tuple[str, ...]] = [head]
    for e in entries:
        examples, seconds = str(getattr(e.result, "examples", "-")), f"{e.seconds:.1f}"
        rows.append((e.metric, _number(e.value), _number(e.standard_error), e.status, examples, seconds))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = (False, True, True, False, True, True)
    columns = list(zip(widths, right, strict=True))
    lines = ["  ".join(c.rjust(w) if r else c.ljust(w) for c, (w, r) in zip(row, columns, strict=True)).rstrip() for row in rows]
    said: dict[str, list[str]] = {}
    for e in entries:
        if e.sentence:
            said.setdefault(e.sentence, []).append(e.metric)
    return "\n".join([*lines, *(f"{', '.join(names)}: {sentence}" for sentence, names in said.items())])


def _listed(chosen: Sequence[Metric], *, as_json: bool) -> str:
    if as_json:
        names = ("name", "family", "about", "examples", "options", "version")
        rows = [{name: getattr(metric, name) for name in names} | metric.work._asdict() for metric in chosen]
        return json.dumps(rows, indent=1)
    width = max(len(metric.name) for metric in chosen)
    return "\n".join(f"{m.name.ljust(width)}  {m.examples:>4} examples  {m.about}" for m in chosen)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _complain(error: object, status: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _show(text: str, end: str = "\n") -> None:
    """Print on stdout, now; raises `OSError` where that cannot be done, after which what is printed goes nowhere."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            raise
        said = error.strerror or error
        raise OSError(f"standard output cannot be written ({said}); free space there, or send it elsewhere") from error


def _process() -> int:
    """`main` whatever the terminal is: its encoding lacks characters, or nobody reads it any more."""
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        return _complain("standard output is closed; send it to a file, or to /dev/null", 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return main()
        finally:
            _show("", end="")  # what the parser of options printed
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        return 141
    except OSError as error:
        return _complain(error, 1)


if __name__ == "__main__":
    sys.exit(_process())
