"""The training loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.lab import models
from experiments.lab.config import Augment, ConfigError, Machine, Precision, RunConfig
from experiments.lab.models.dropout import dropout_layers
from experiments.lab.training import augment, budget, optimizers
from experiments.lab.training.budget import Pass
from experiments.lab.training.data import Data, Examples, dtype_of
from experiments.lab.training.evaluate import calibrate_on, evaluate
from experiments.lab.training.order import Order
from experiments.lab.training.schedules import lr_at
from experiments.lab.training.state import Checkpoint, Snapshot, State, Tensors

CHECKED = 5000
"""training examples a stop-rule pass looks at"""
CURVE = 2000
"""training and test examples a point of the training curves looks at"""


class Log(Protocol):
    """Where a run leaves its traces; see `experiments.lab.folder.RunFolder` for the one on disk."""

    def load(self) -> Checkpoint | None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def history_bytes(self) -> int: ...
    def wants_checkpoint(self, step: int) -> bool: ...
    def save(self, checkpoint: Checkpoint) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a finished run is: status, the reason for it, final values, weights and per-test-example predictions."""

    status: str
    reason: str | None
    values: dict[str, Any]
    weights: Tensors
    predictions: Tensors


def train(config: RunConfig, machine: Machine, data: Data, log: Log, parent: Tensors | None = None) -> Outcome:
    """Train `config` from its initial weights (or `parent`'s) until its budget is spent, continuing from `log`.

    The same config, machine, device and versions give the same weights bitwise, through any number of interruptions.
    Raises `ConfigError` where `machine` would change the science.
    """
    machine.check(config)
    set_arithmetic(config)
    n, above, below = len(data.train), None, None
    passes: tuple[Pass, ...] = ()
    state = initial_state(config, machine, data, parent)
    start = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    batches = Batches(config, data.train)
    total, cap = budget.total_steps(config, n), budget.cap_steps(config, n)
    if (saved := log.load()) is not None:
        state.restore(saved.current)
        passes, above, below = saved.passes, saved.above, saved.below
    elif config.train_loss is not None:
        if checked_loss(state.model, data) <= config.train_loss:
            return outcome("capped", "the training loss met its target before the first update", state, start, config, data)
        above = state.copy()  # the target may be crossed before the first pass

    while True:
        point, check = budget.next_curve_point(n, config.batch_size, state.step), budget.next_pass(config, n, passes)
        check = None if check is None else min(check, cap)
        for step in range(state.step, min(point, check or cap, cap)):
            if log.wants_checkpoint(step):
                log.save(Checkpoint(state.copy(), above, below, passes, log.history_bytes()))
            update(state, config, machine, batches, lr_at(config, step, total))

        if (bad := write_losses(state, config, n, total, log)) is not None:
            return outcome("diverged", f"the training loss was not finite at step {bad}", state, start, config, data)
        if state.step == point:
            write_curve_point(state, config, data, log)
        if state.step == check:
            passes = (*passes, Pass(state.step, checked_loss(state.model, data)))
            if not math.isfinite(passes[-1].loss):
                return outcome("diverged", "the training loss is not finite", state, start, config, data)
            log.row({"kind": "check", **position(state.step, config, n), "train_loss": passes[-1].loss})
            if config.train_loss is not None and passes[-1].loss > config.train_loss:
                above, below = state.copy(), None
            elif config.train_loss is not None and below is None:
                below = state.copy()
        if below is not None and (budget.crossed(config, passes) or state.step >= cap):
            loss = find_crossing(state, config, machine, batches, data, above, below, passes)
            reason = None if budget.in_band(config, loss) else f"neighbouring updates jump over the target; ended at {loss:.3g}"
            return outcome("done", reason, state, start, config, data)
        if budget.levelled_off(config, n, passes) or state.step == total:
            return outcome("done", None, state, start, config, data)
        if state.step >= cap:
            reason = f"the budget {config.budget} was not met within {config.max_epochs:g} epochs"
            return outcome("capped", reason, state, start, config, data)


def update(state: State, config: RunConfig, machine: Machine, batches: Batches, lr: float) -> None:
    """One optimizer step on the exact batch of `state.step`: w <- w - optimizer(mean gradient over B examples)."""
    inputs, targets = batches.at(state.step)
    size = machine.micro_batch or config.batch_size
    state.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=inputs.device, dtype=inputs.dtype)
    for first in range(0, config.batch_size, size):
        for layer in state.dropout:
            layer.seed_and_step, layer.first_example = (config.seed, state.step), first
        x, y = inputs[first : first + size], targets[first : first + size]
        with precision(config, inputs.device):
            part = nn.functional.cross_entropy(state.model(x), y) * (len(y) / config.batch_size)
        part.backward()
        loss += part.detach()
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.losses.append(loss)
    state.step += 1


class Batches:
    """Inputs [B, ...] and targets [B] of any step."""

    def __init__(self, config: RunConfig, examples: Examples) -> None:
        self.config, self.examples = config, examples
        self.order = Order(config.seed, len(examples), config.batch_size)
        self._draws: dict[int, Tensor] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        pieces = [self._piece(epoch, positions) for epoch, positions in self.order.at(step)]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat([inputs for inputs, _ in pieces]), torch.cat([targets for _, targets in pieces])

    def _piece(self, epoch: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.to(self.examples.targets.device)
        inputs, targets = self.examples.inputs[positions], self.examples.targets[positions]
        if self.config.augment is Augment.CROP_FLIP:
            if epoch not in self._draws:
                drawn = augment.draws(self.config.seed, epoch, len(self.examples)).to(targets.device)
                self._draws = {k: v for k, v in self._draws.items() if k == epoch - 1} | {epoch: drawn}
            inputs = augment.crop_flip(inputs, self._draws[epoch][positions])
        return inputs, targets


def find_crossing(
    state: State, config: RunConfig, machine: Machine, batches: Batches, data: Data,
    above: Snapshot | None, below: Snapshot, passes: tuple[Pass, ...],
) -> float:  # fmt: skip
    """Bring `state` to an update whose training loss is in the target's band, by bisection between the two snapshots.

    Invariant: the loss is above the target at `above`, at or below it at `below`. Updates are replayed exactly, so the
    trajectory is the one that was seen. Where even neighbouring updates jump over the band, the nearer one is taken.
    Returns the loss there.
    """
    losses = {0: math.inf} | {p.step: p.loss for p in passes}
    target = config.train_loss
    assert target is not None
    while above is not None and not budget.in_band(config, losses[below.step]) and below.step - above.step > 1:
        state.restore(above)
        for _ in range((below.step - above.step) // 2):
            update(state, config, machine, batches, config.peak_lr)
        losses[state.step] = checked_loss(state.model, data)
        if losses[state.step] > target:
            above = state.copy()
        else:
            below = state.copy()
    ends = [end for end in (below, above) if end is not None]
    if budget.in_band(config, losses[below.step]):
        ends = [below]
    nearest = min(ends, key=lambda end: abs(math.log(max(losses[end.step], 1e-300) / target)))
    state.restore(nearest)
    return losses[nearest.step]


def initial_state(config: RunConfig, machine: Machine, data: Data, parent: Tensors | None) -> State:
    model = models.build(config, data.shape, data.classes)
    if parent is not None:
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if own != {name: tuple(value.shape) for name, value in parent.items()}:
            raise ConfigError(f"the weights of parent {config.parent} are of another network; give this run the same model")
        model.load_state_dict(parent)
    model = model.to(machine.device, dtype_of(config)).train()
    if data.train.inputs.is_contiguous(memory_format=torch.channels_last):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return State(model, optimizers.build(config, model), dropout_layers(model))


def set_arithmetic(config: RunConfig) -> None:
    """TF32 on CUDA only where the config says so (torch lets convolutions use it unasked), and cuDNN's repeatable kernels."""
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = "tf32" if config.tf32 else "ieee"
    backends.cudnn.deterministic = True


def precision(config: RunConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if config.precision is Precision.BFLOAT16:
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def checked_loss(model: nn.Module, data: Data) -> float:
    """The stop rule's pass: evaluation-mode mean cross-entropy on the first `CHECKED` training examples."""
    calibrate_on(model, data.train.inputs)
    return evaluate(model, data.train.inputs[:CHECKED], data.train.targets[:CHECKED]).loss


def position(step: int, config: RunConfig, n: int) -> dict[str, Any]:
    return {"step": step, "examples": step * config.batch_size, "epoch": step * config.batch_size / n}


def write_losses(state: State, config: RunConfig, n: int, total: int | None, log: Log) -> int | None:
    """Write the mean online loss since the last row; returns the first step whose loss was not finite."""
    if not state.losses:
        return None
    losses = torch.stack(state.losses).double().cpu()
    finite = torch.isfinite(losses)
    first = state.step - len(losses)
    if not finite.all():
        return first + int((~finite).nonzero()[0, 0])
    lr = lr_at(config, state.step - 1, total)
    log.row({"kind": "train", **position(state.step, config, n), "loss": losses.mean().item(), "lr": lr})
    state.losses = []
    return None


def write_curve_point(state: State, config: RunConfig, data: Data, log: Log) -> None:
    calibrate_on(state.model, data.train.inputs)
    scores = {
        split: evaluate(state.model, examples.inputs[:CURVE], examples.targets[:CURVE])
        for split, examples in (("train", data.train), ("test", data.test))
    }
    if all(math.isfinite(score.loss) for score in scores.values()):
        columns: Iterator[tuple[str, float]] = (
            (f"{split}_{name}", getattr(score, name)) for split, score in scores.items() for name in ("loss", "accuracy")
        )
        log.row({"kind": "eval", **position(state.step, config, len(data.train)), **dict(columns)})


def outcome(
    status: str, reason: str | None, state: State, start: Tensors, config: RunConfig, data: Data
) -> Outcome:  # fmt: skip
    """Final values: unaugmented evaluation-mode passes over all examples at the final weights."""
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "validation_loss", "validation_accuracy",
             "gap_accuracy", "gap_loss", "distance_from_start")  # fmt: skip
    values: dict[str, Any] = dict.fromkeys(names)
    predictions: Tensors = {}
    if status != "diverged":
        calibrate_on(state.model, data.train.inputs)
        for split in ("train", "test", "validation"):
            examples: Examples = getattr(data, split)
            if len(examples):
                scores = evaluate(state.model, examples.inputs, examples.targets)
                values[f"{split}_loss"], values[f"{split}_accuracy"] = scores.loss, scores.accuracy
                if split == "test":
                    predictions = {
                        "test_prediction": scores.predictions.to(torch.uint8),
                        "test_loss": scores.losses.float(),
                        "test_label": examples.targets.cpu().to(torch.uint8),
                    }
        values["gap_accuracy"] = values["train_accuracy"] - values["test_accuracy"]
        values["gap_loss"] = values["test_loss"] - values["train_loss"]
        moved = [(p.detach().double() - start[name].double()).square().sum() for name, p in state.model.named_parameters()]
        values["distance_from_start"] = math.sqrt(sum(square.item() for square in moved))
        if not all(math.isfinite(value) for value in values.values() if value is not None):
            return outcome("diverged", "the final weights or losses are not finite", state, start, config, data)
    facts = {"steps": state.step, **{k: v for k, v in position(state.step, config, len(data.train)).items() if k != "step"}}
    facts["epochs"] = facts.pop("epoch")
    weights = {name: value.detach().cpu().contiguous() for name, value in state.model.state_dict().items()}
    return Outcome(status, reason, {**facts, **values}, weights, predictions)
