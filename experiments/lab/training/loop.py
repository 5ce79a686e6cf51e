"""The training loop: one for every run, alone or as a member of an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from experiments.lab.declare.config import Machine, RunConfig, program
from experiments.lab.declare.errors import ConfigError
from experiments.lab.fused.ensemble import Ensemble
from experiments.lab.training import budget
from experiments.lab.training.course import Course, Log, Outcome, Watched, initial_model, set_arithmetic
from experiments.lab.training.data import Data
from experiments.lab.training.engine import Single
from experiments.lab.training.state import Checkpoint, Tensors

__all__ = ["Log", "Outcome", "train", "train_group"]

Ended = Callable[[int, Outcome], None]


def train(config: RunConfig, machine: Machine, data: Data, log: Log, parent: Tensors | None = None) -> Outcome:
    """Train `config` from its initial weights (or `parent`'s) until its budget is spent, continuing from `log`.

    The same config, machine, device and versions give the same weights bitwise, through any number of interruptions.
    Raises `ConfigError` where `machine` would change the science.
    """
    return train_group([config], machine, data, [log], [parent])[0]


def train_group(configs: Sequence[RunConfig], machine: Machine, data: Data, logs: Sequence[Log],
                parents: Sequence[Tensors | None] | None = None, ended: Ended | None = None) -> list[Outcome]:
    """Train runs that differ only in `config.SCALARS` as one program; the outcomes in the order of `configs`.

    `ended(index, outcome)` is called as soon as a member has ended; the others go on without it. Continues from the newest
    step of which every log has a checkpoint.
    """
    for config in configs:
        machine.check(config)
        if program(config) != program(configs[0]):
            raise ConfigError("only runs that differ in nothing but seed, learning rate and other scalars are one program")
    set_arithmetic(configs[0])
    models = [initial_model(c, machine, data, p) for c, p in zip(configs, parents or [None] * len(configs), strict=True)]
    live = [Course(c, machine, data, log, model) for c, log, model in zip(configs, logs, models, strict=True)]
    courses = tuple(live)
    stepper = join(live, machine, data, models)
    saved = common_checkpoints(logs)
    if saved:
        stepper.restore([checkpoint.current for checkpoint in saved])
        for course, checkpoint in zip(live, saved, strict=True):
            course.resume(checkpoint)

    while live:
        going = [course for course in live if course.plan()]
        if len(going) < len(live):
            if going:
                save_all(live)  # what a member's end changes for the others is on disk before the end is
            for course in live:
                if course not in going and ended is not None:
                    ended(courses.index(course), course.result())
            if going:
                snapshots = [course.copy() for course in going]
                stepper = join(going, machine, data, [initial_model(c.config, machine, data, None) for c in going])
                stepper.restore(snapshots)
            live = going
            continue
        advance(stepper, live, min(course.wanted for course in live))
        for course in live:
            if course.wanted == stepper.step:
                course.observe()
    return [course.result() for course in courses]


def join(courses: Sequence[Course], machine: Machine, data: Data, models: Sequence[nn.Module]) -> Single | Ensemble:
    """The program of these runs, from their models' weights; every course becomes a member of it."""
    totals = [budget.total_steps(course.config, len(data.train)) for course in courses]
    if len(courses) == 1:
        stepper = Single(courses[0].config, machine, data, models[0], totals[0])
    else:
        stepper = Ensemble([course.config for course in courses], machine, data, models, totals)
    for member, course in enumerate(courses):
        course.stepper, course.member = stepper, member
    return stepper


def advance(stepper: Single | Ensemble, courses: Sequence[Course], until: int) -> None:
    """Update up to step `until`; checkpoints are written on the way, of all members at the same step."""
    saved_at = -1
    for course in courses:
        if isinstance(course.log, Watched):
            course.log.see(partial(course.stepper.recent_loss, course.member))

    def due(step: int) -> bool:
        return step != saved_at and any([course.log.wants_checkpoint(step) for course in courses])

    while stepper.step < until:
        stepper.advance(until, due)
        if stepper.step < until:
            save_all(courses)
            saved_at = stepper.step


def save_all(courses: Sequence[Course]) -> None:
    """Write every member's checkpoint, whatever happens to one of them; then raise the first thing that did."""
    errors = []
    for course in courses:
        try:
            course.log.save(course.checkpoint())
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
