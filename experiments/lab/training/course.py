"""One run's way through its budget: when it looks at itself, what it writes down, when it ends and with what.

A `Course` knows nothing of how updates are computed: it says up to which step it wants to be brought, and looks then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from experiments.lab import models
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.fused.ensemble import Ensemble
from experiments.lab.training import budget
from experiments.lab.training.batch_schedule import phases_of
from experiments.lab.training.budget import Pass
from experiments.lab.training.data import Data, Examples, dtype_of
from experiments.lab.training.engine import Single
from experiments.lab.training.evaluate import calibrate_on, evaluate
from experiments.lab.training.schedules import lr_of
from experiments.lab.training.state import Checkpoint, Snapshot, Tensors

CHECKED = 5000
"""training examples a stop-rule pass looks at"""
CURVE = 2000
"""training and test examples that a point of the training curves looks at"""


class Log(Protocol):
    """Where a run leaves its traces; see `experiments.lab.store.run_folder.RunFolder` for the one on disk."""

    def load(self, newest: int | None = None) -> Checkpoint | None:
        """The newest whole checkpoint (of step `newest` at most); the history is cut back to it."""
        ...

    def row(self, row: dict[str, Any]) -> None: ...
    def history_bytes(self) -> int: ...
    def wants_checkpoint(self, step: int) -> bool: ...
    def save(self, checkpoint: Checkpoint) -> None: ...


@runtime_checkable
class Watched(Protocol):
    """A log that shows a run between the rows of its history."""

    def see(self, recent_loss: Callable[[], float | None]) -> None:
        """`recent_loss` tells the mean loss of the last updates whenever it is asked."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a finished run is: status, the reason for it, final values, weights and per-test-example predictions."""

    status: str
    reason: str | None
    values: dict[str, Any]
    weights: Tensors
    predictions: Tensors


class Course:
    """One run between two looks. `plan`, updates up to `wanted`, `observe`, and again, until `plan` says that it is over."""

    stepper: Single | Ensemble
    member: int
    wanted: int

    def __init__(self, config: RunConfig, machine: Machine, data: Data, log: Log, model: nn.Module) -> None:
        self.config, self.machine, self.data, self.log = config, machine, data, log
        self.start = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.n = len(data.train)
        self.phases = phases_of(config, self.n)
        self.total, self.cap = budget.total_steps(config, self.n), budget.cap_steps(config, self.n)
        self.passes: tuple[Pass, ...] = ()
        self.above: Snapshot | None = None
        self.below: Snapshot | None = None
        self.outcome: Outcome | None = None
        self.begun = False

    def resume(self, saved: Checkpoint) -> None:
        self.passes, self.above, self.below, self.begun = saved.passes, saved.above, saved.below, True

    @property
    def step(self) -> int:
        return self.stepper.step

    def model(self) -> nn.Module:
        return self.stepper.model(self.member)

    def copy(self) -> Snapshot:
        return self.stepper.copy(self.member)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.copy(), self.above, self.below, self.passes, self.log.history_bytes())

    def result(self) -> Outcome:
        assert self.outcome is not None
        return self.outcome

    def plan(self) -> bool:
        """Whether the run goes on, and then up to which step; otherwise its outcome is there."""
        config, passes = self.config, self.passes
        if not self.begun and config.train_loss is not None:
            if checked_loss(self.model(), self.data) <= config.train_loss:
                self.end("capped", "the training loss met its target before the first update")
            self.above = self.copy()  # the target may be crossed before the first pass
        self.begun = True
        if self.outcome is None:
            self.end_if_spent()
        if self.outcome is not None:
            return False
        point, check = self.next_point(), budget.next_pass(config, self.n, passes)
        self.wanted = min(point, self.cap if check is None else check, self.cap)
        return True

    def next_point(self) -> int:
        """Of the curves; or the end of a phase, for a row of online losses is of batches of one size."""
        point, end = budget.next_curve_point(self.n, self.phases, self.step), self.phases.at(self.step).end
        return point if end is None else min(point, end)

    def end_if_spent(self) -> None:
        config, passes = self.config, self.passes
        if self.below is not None and (budget.crossed(config, passes) or self.step >= self.cap):
            stepper, loss = find_crossing(self)
            reason = None if budget.in_band(config, loss) else f"neighbouring updates jump over the target; ended at {loss:.3g}"
            self.end("done", reason, stepper)
        elif budget.levelled_off(config, self.n, passes) or self.step == self.total:
            self.end("done", None)
        elif self.step >= self.cap:
            self.end("capped", f"the budget {config.budget} was not met within {config.max_epochs:g} epochs")

    def observe(self) -> None:
        """Look at the run at step `wanted`: online losses, a point of its curves, a pass of its stop rule."""
        config, n, step = self.config, self.n, self.step
        point, check = budget.next_curve_point(n, self.phases, step - 1), budget.next_pass(config, n, self.passes)
        if (bad := self.write_losses()) is not None:
            return self.end("diverged", f"the training loss was not finite at step {bad}")
        if step == point:
            self.write_curve_point()
        if check is not None and step == min(check, self.cap):
            loss = checked_loss(self.model(), self.data)
            self.passes = (*self.passes, Pass(step, loss))
            if not math.isfinite(loss):
                return self.end("diverged", "the training loss is not finite")
            self.log.row({"kind": "check", **position(step, config, n), "train_loss": loss})
            if config.train_loss is not None and loss > config.train_loss:
                self.above, self.below = self.copy(), None
            elif config.train_loss is not None and self.below is None:
                self.below = self.copy()

    def write_losses(self) -> int | None:
        """Write the mean online loss since the last row; returns the first step whose loss was not finite."""
        kept = self.stepper.losses(self.member)
        if not kept:
            return None
        losses = torch.cat(kept).double().cpu()
        finite = torch.isfinite(losses)
        first = self.step - len(losses)
        if not finite.all():
            return first + int((~finite).nonzero()[0, 0])
        lr = lr_of(self.config, self.phases, self.step - 1, self.total)
        self.log.row({"kind": "train", **position(self.step, self.config, self.n), "loss": losses.mean().item(), "lr": lr})
        self.stepper.forget_losses(self.member)
        return None

    def write_curve_point(self) -> None:
        model, data = self.model(), self.data
        calibrate_on(model, data.train.inputs)
        scores = {
            split: evaluate(model, examples.inputs[:CURVE], examples.targets[:CURVE])
            for split, examples in (("train", data.train), ("test", data.test))
        }
        if all(math.isfinite(score.loss) for score in scores.values()):
            columns: Iterator[tuple[str, float]] = (
                (f"{split}_{name}", getattr(score, name)) for split, score in scores.items() for name in ("loss", "accuracy")
            )
            self.log.row({"kind": "eval", **position(self.step, self.config, self.n), **dict(columns)})

    def end(self, status: str, reason: str | None, stepper: Single | None = None) -> None:
        """Final values at the present weights, or at those of `stepper`."""
        model, step = (self.model(), self.step) if stepper is None else (stepper.model(), stepper.step)
        self.outcome = outcome(status, reason, model, step, self)


def find_crossing(course: Course) -> tuple[Single, float]:
    """An update whose training loss is in the target's band, by bisection between the two snapshots of `course`.

    Invariant: the loss is above the target at `above`, at or below it at `below`. Updates are replayed exactly (those of
    an ensemble up to rounding), so the trajectory is the one that was seen. Where even neighbouring updates jump over the
    band, the nearer one is taken. Returns the run there, and its loss.
    """
    config, data, above, below = course.config, course.data, course.above, course.below
    losses = {0: math.inf} | {p.step: p.loss for p in course.passes}
    target, stepper, resting = config.train_loss, alone(course), course.checkpoint()
    assert target is not None and below is not None

    def due(step: int) -> bool:
        if course.log.wants_checkpoint(resting.current.step):
            course.log.save(resting)  # raises where a stop was asked for; the bisection is then begun anew
        return False

    while above is not None and not budget.in_band(config, losses[below.step]) and below.step - above.step > 1:
        stepper.restore([above])
        stepper.advance(above.step + (below.step - above.step) // 2, due)
        losses[stepper.step] = checked_loss(stepper.model(), data)
        if losses[stepper.step] > target:
            above = stepper.copy()
        else:
            below = stepper.copy()
    ends = [end for end in (below, above) if end is not None]
    if budget.in_band(config, losses[below.step]):
        ends = [below]
    nearest = min(ends, key=lambda end: abs(math.log(max(losses[end.step], 1e-300) / target)))
    stepper.restore([nearest])
    return stepper, losses[nearest.step]


def alone(course: Course) -> Single:
    """A program of `course` alone: its own where it is alone already."""
    if isinstance(course.stepper, Single):
        return course.stepper
    model = initial_model(course.config, course.machine, course.data, None)
    return Single(course.config, course.machine, course.data, model, course.total)


def initial_model(config: RunConfig, machine: Machine, data: Data, parent: Tensors | None) -> nn.Module:
    """The network of `config` on its device in training mode: drawn from its seed, or with `parent`'s weights."""
    model = models.build(config, data.shape, data.classes)
    if parent is not None:
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if own != {name: tuple(value.shape) for name, value in parent.items()}:
            raise ConfigError(f"the weights of parent {config.parent} are of another network; give this run the same model")
        model.load_state_dict(parent)
    model = model.to(machine.device, dtype_of(config)).train()
    if data.train.inputs.is_contiguous(memory_format=torch.channels_last):
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack it
    return model


def set_arithmetic(config: RunConfig) -> None:
    """TF32 on CUDA only where the config says so (torch lets convolutions use it unasked), and cuDNN's repeatable kernels."""
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = "tf32" if config.tf32 else "ieee"
    backends.cudnn.deterministic = True


def checked_loss(model: nn.Module, data: Data) -> float:
    """The stop rule's pass: evaluation-mode mean cross-entropy on the first `CHECKED` training examples."""
    calibrate_on(model, data.train.inputs)
    return evaluate(model, data.train.inputs[:CHECKED], data.train.targets[:CHECKED]).loss


def position(step: int, config: RunConfig, n: int) -> dict[str, Any]:
    examples = phases_of(config, n).seen(step)
    return {"step": step, "examples": examples, "epoch": examples / n}


def outcome(
    status: str, reason: str | None, model: nn.Module, step: int, course: Course
) -> Outcome:
    """Final values: unaugmented evaluation-mode passes over all examples at the final weights."""
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "validation_loss", "validation_accuracy",
             "gap_accuracy", "gap_loss", "distance_from_start")
    values: dict[str, Any] = dict.fromkeys(names)
    predictions: Tensors = {}
    data, start, config = course.data, course.start, course.config
    if status != "diverged":
        calibrate_on(model, data.train.inputs)
        for split in ("train", "test", "validation"):
            examples: Examples = getattr(data, split)
            if len(examples):
                scores = evaluate(model, examples.inputs, examples.targets)
                values[f"{split}_loss"], values[f"{split}_accuracy"] = scores.loss, scores.accuracy
                if split == "test":
                    predictions = {
                        "test_prediction": scores.predictions.to(torch.uint8),
                        "test_loss": scores.losses.float(),
                        "test_label": examples.targets.cpu().to(torch.uint8),
                    }
        values["gap_accuracy"] = values["train_accuracy"] - values["test_accuracy"]
        values["gap_loss"] = values["test_loss"] - values["train_loss"]
        moved = [(p.detach().double() - start[name].double()).square().sum() for name, p in model.named_parameters()]
        values["distance_from_start"] = math.sqrt(sum(square.item() for square in moved))
        if not all(math.isfinite(value) for value in values.values() if value is not None):
            return outcome("diverged", "the final weights or losses are not finite", model, step, course)
    facts = {"steps": step, **{k: v for k, v in position(step, config, len(data.train)).items() if k != "step"}}
    facts["epochs"] = facts.pop("epoch")
    # copies: the members of an ensemble share one network
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    return Outcome(status, reason, {**facts, **values}, weights, predictions)
