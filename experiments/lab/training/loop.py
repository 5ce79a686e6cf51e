"""The training loop, of one run or of several as one program: set up, then look, advance and observe until every run has ended.

How updates are computed is the engine's, when a run looks at its loss and ends is its stop rule's (`engine`, `stop_rule`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from experiments.lab.declare.config import Machine, RunConfig, program
from experiments.lab.declare.errors import ConfigError
from experiments.lab.training.batch_schedule import BatchSchedule, batch_schedule, position
from experiments.lab.training.data import Data
from experiments.lab.training.engine import Engine, MakeEngine, single_engine
from experiments.lab.training.evaluate import calibrate_on, evaluate
from experiments.lab.training.initial import initial_model, set_arithmetic
from experiments.lab.training.outcome import Outcome, outcome, scored
from experiments.lab.training.schedules import lr_of
from experiments.lab.training.state import Checkpoint, Snapshot, Tensors
from experiments.lab.training.stop_rule import Ending, StopRule, checked_loss

CURVE = 2000
"""training and test examples that a point of the training curves looks at"""
Ended = Callable[[int, Outcome], None]


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


def train(config: RunConfig, machine: Machine, data: Data, log: Log, parent: Tensors | None = None) -> Outcome:
    """Train `config` from its initial weights (or `parent`'s) until its budget is spent, continuing from `log`.

    The same config, machine, device and versions give the same weights bitwise, through any number of interruptions.
    Raises `ConfigError` where `machine` would change the science.
    """
    return train_group([config], machine, data, [log], [parent])[0]


def train_group(configs: Sequence[RunConfig], machine: Machine, data: Data, logs: Sequence[Log],
                parents: Sequence[Tensors | None] | None = None, ended: Ended | None = None,
                make_engine: MakeEngine = single_engine) -> list[Outcome]:
    """Train runs that differ only in `config.SCALARS` as one program; the outcomes in the order of `configs`.

    `ended(index, outcome)` is called as soon as a run has ended; the others go on without it. Continues from the newest
    step of which every log has a checkpoint. Several runs need an engine for several (`experiments.lab.fused`).
    """
    for config in configs:
        machine.check(config)
        if program(config) != program(configs[0]):
            raise ConfigError("only runs that differ in nothing but seed, learning rate and other scalars are one program")
    set_arithmetic(configs[0])
    models = [initial_model(c, machine, data, p) for c, p in zip(configs, parents or [None] * len(configs), strict=True)]
    engine = make_engine(configs, machine, data, models)
    runs = [Run(c, data, log, m, engine, i) for i, (c, log, m) in enumerate(zip(configs, logs, models, strict=True))]
    if saved := common_checkpoints(logs):
        engine.restore([checkpoint.current for checkpoint in saved])
    for run, checkpoint in zip(runs, saved or [None] * len(runs), strict=True):
        run.begin(checkpoint)

    live = list(runs)
    while live:
        going = [run for run in live if run.look()]
        if len(going) < len(live):
            if going:
                save_all(live)  # what a run's end changes for the others is on disk before the end is
            for run in live:
                if run not in going and ended is not None:
                    ended(runs.index(run), run.result())
            if going:
                engine = engine.only([run.member for run in going])
                for member, run in enumerate(going):
                    run.engine, run.member = engine, member
            live = going
            continue
        advance(engine, live, min(run.wanted for run in live))
        for run in live:
            if run.wanted == engine.step:
                run.observe()
    return [run.result() for run in runs]


def advance(engine: Engine, runs: Sequence[Run], until: int) -> None:
    """Update up to step `until`; checkpoints are written on the way, of all runs at the same step."""
    saved_at = -1
    for run in runs:
        if isinstance(run.log, Watched):
            run.log.see(partial(engine.recent_loss, run.member))

    def due(step: int) -> bool:
        return step != saved_at and any([run.log.wants_checkpoint(step) for run in runs])

    while engine.step < until:
        engine.advance(until, due)
        if engine.step < until:
            save_all(runs)
            saved_at = engine.step


class Run:
    """One run: `begin`, then `look`, updates up to `wanted` and `observe`, again and again, until `look` says that it is over."""

    wanted: int

    def __init__(self, config: RunConfig, data: Data, log: Log, model: nn.Module, engine: Engine, member: int) -> None:
        self.config, self.data, self.log, self.n = config, data, log, len(data.train)
        self.engine, self.member = engine, member
        self.start = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.batches, self.rule = batch_schedule(config, self.n), StopRule(config, self.n)
        self.outcome: Outcome | None = None

    @property
    def step(self) -> int:
        return self.engine.step

    def model(self) -> nn.Module:
        return self.engine.model(self.member)

    def copy(self) -> Snapshot:
        return self.engine.copy(self.member)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.copy(), self.rule.above, self.rule.below, self.rule.passes, self.log.history_bytes())

    def result(self) -> Outcome:
        assert self.outcome is not None
        return self.outcome

    def begin(self, saved: Checkpoint | None) -> None:
        """From a checkpoint, whose state the engine has, or from the first update."""
        if saved is not None:
            self.rule.resume(saved)
        elif self.config.train_loss is not None and (ending := self.rule.begin(checked_loss(self.model(), self.data), self.copy)):
            self.end(ending)

    def look(self) -> bool:
        """Whether the run goes on, and then up to which step; otherwise its outcome is there."""
        if self.outcome is None and self.rule.crossed(self.step):
            self.end_at_crossing()
        elif self.outcome is None and (ending := self.rule.spent(self.step)):
            self.end(ending)
        if self.outcome is not None:
            return False
        point, check = next_curve_point(self.n, self.batches, self.step), self.rule.next_pass()
        phase_end = self.batches.at(self.step).end  # a row of online losses is of batches of one size
        self.wanted = min(step for step in (point, check, phase_end, self.rule.cap) if step is not None)
        return True

    def observe(self) -> None:
        """Look at the run at step `wanted`: online losses, a point of its curves, a pass of its stop rule."""
        step, where = self.step, position(self.step, self.config, self.n)
        point, check = next_curve_point(self.n, self.batches, step - 1), self.rule.next_pass()
        if (bad := self.write_losses()) is not None:
            return self.end(Ending("diverged", f"the training loss was not finite at step {bad}"))
        if step == point:
            self.write_curve_point()
        if step == check:
            loss = checked_loss(self.model(), self.data)
            if not math.isfinite(loss):
                return self.end(Ending("diverged", "the training loss is not finite"))
            self.log.row({"kind": "check", **where, "train_loss": loss})
            self.rule.note(step, loss, self.copy)

    def write_losses(self) -> int | None:
        """Write the mean online loss since the last row; returns the first step whose loss was not finite."""
        kept = self.engine.losses[self.member]
        if not kept:
            return None
        losses = torch.cat(kept).double().cpu()
        finite = torch.isfinite(losses)
        first = self.step - len(losses)
        if not finite.all():
            return first + int((~finite).nonzero()[0, 0])
        lr = lr_of(self.config, self.batches, self.step - 1, self.rule.total)
        self.log.row({"kind": "train", **position(self.step, self.config, self.n), "loss": losses.mean().item(), "lr": lr})
        self.engine.losses[self.member] = []
        return None

    def write_curve_point(self) -> None:
        model, data = self.model(), self.data
        calibrate_on(model, data.train.inputs)
        scores = {split: evaluate(model, examples.inputs[:CURVE], examples.targets[:CURVE], data.task)
                  for split, examples in (("train", data.train), ("test", data.test))}
        if all(math.isfinite(score.loss) for score in scores.values()):
            columns = {f"{split}_{name}": getattr(score, name) for split, score in scores.items() for name in scored(data.task)}
            self.log.row({"kind": "eval", **position(self.step, self.config, self.n), **columns})

    def end_at_crossing(self) -> None:
        """End at the update that the stop rule finds between its last passes, with an engine of this run alone."""
        resting = self.checkpoint()

        def due(step: int) -> bool:
            if self.log.wants_checkpoint(resting.current.step):
                self.log.save(resting)  # raises where a stop was asked for; the bisection is then begun anew
            return False

        engine = self.engine.only([self.member])
        ending = self.rule.bisect(engine, self.data, due)
        self.outcome = outcome(ending, engine.model(), self.start, engine.step, self.config, self.data)

    def end(self, ending: Ending) -> None:
        self.outcome = outcome(ending, self.model(), self.start, self.step, self.config, self.data)


def next_curve_point(n: int, batches: BatchSchedule, step: int) -> int:
    """The next step after `step` at which the training curves get a point: epochs 1, 1.5, 2, 3, 4, 6, 8, 12, ..."""
    for doubling in itertools.count():
        for epochs in (2**doubling, 1.5 * 2**doubling):
            if (point := batches.step_with(epochs * n)) > step:
                return point
    raise AssertionError("unreachable")


def save_all(runs: Sequence[Run]) -> None:
    """Write every run's checkpoint, whatever happens to one of them; then raise the first thing that did."""
    errors = []
    for run in runs:
        try:
            run.log.save(run.checkpoint())
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def common_checkpoints(logs: Sequence[Log]) -> list[Checkpoint]:
    """The newest checkpoints of one step that all logs have; none where there is no such step."""
    newest: int | None = None
    while True:
        found = [log.load(newest) for log in logs]
        saved = [checkpoint for checkpoint in found if checkpoint is not None]
        if len(saved) < len(logs):
            for log in logs:
                log.load(-1)  # their histories begin anew
            return []
        steps = {checkpoint.current.step for checkpoint in saved}
        if len(steps) == 1:
            return saved
        newest = min(steps)
