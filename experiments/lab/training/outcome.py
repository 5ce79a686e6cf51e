"""What a finished run is: its final scores, unaugmented evaluation-mode passes over all examples at the final weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.lab.declare.config import RunConfig
from experiments.lab.training.batch_schedule import position
from experiments.lab.training.data import Data, Examples
from experiments.lab.training.evaluate import Scores, calibrate_on, evaluate
from experiments.lab.training.losses import Task
from experiments.lab.training.own_task import state_of
from experiments.lab.training.state import Tensors
from experiments.lab.training.stop_rule import Ending

VALUES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "validation_loss", "validation_accuracy",
          "gap_accuracy", "gap_loss", "distance_from_start")


@dataclass(frozen=True)
class Outcome:
    """Status, the reason for it, final values, weights and per-test-example predictions."""

    status: str
    reason: str | None
    values: dict[str, Any]
    weights: Tensors
    predictions: Tensors


def scored(task: Task) -> tuple[str, ...]:
    """What is scored beside the training: `Scores`' fields."""
    return ("loss", "accuracy") if task.accurate else ("loss", "r2")


def per_example(scores: Scores, examples: Examples, outputs: int) -> Tensors:
    """What is kept of each test example: its loss, and its class and the predicted one where it has one."""
    found = {} if scores.losses is None else {"test_loss": scores.losses.float()}
    if scores.predictions is None:
        return found
    small = torch.uint8 if outputs <= 256 else torch.int32
    return {"test_prediction": scores.predictions.to(small), **found, "test_label": examples.targets.cpu().to(small)}


def outcome(ending: Ending, model: nn.Module, start: Tensors, step: int, config: RunConfig, data: Data) -> Outcome:
    """Of a run that ends after `step` updates with the weights of `model`; `start` are the parameters that it began with."""
    values: dict[str, Any] = dict.fromkeys(VALUES)
    if not data.task.accurate:
        values |= dict.fromkeys(f"{split}_r2" for split in ("train", "test", "validation"))
    predictions: Tensors = {}
    if ending.status != "diverged":
        calibrate_on(model, data.train.inputs)
        for split in ("train", "test", "validation"):
            examples: Examples = getattr(data, split)
            if len(examples):
                scores = evaluate(model, examples.inputs, examples.targets, data.task)
                values |= {f"{split}_{name}": getattr(scores, name) for name in scored(data.task)}
                if split == "test":
                    predictions = per_example(scores, examples, data.outputs)
        if values["train_accuracy"] is not None and values["test_accuracy"] is not None:
            values["gap_accuracy"] = values["train_accuracy"] - values["test_accuracy"]
        values["gap_loss"] = values["test_loss"] - values["train_loss"]
        moved = [(p.detach().double() - start[name].double()).square().sum() for name, p in model.named_parameters()]
        values["distance_from_start"] = math.sqrt(sum(square.item() for square in moved))
        if not all(math.isfinite(value) for value in values.values() if value is not None):
            diverged = Ending("diverged", "the final weights or losses are not finite")
            return outcome(diverged, model, start, step, config, data)
    where = position(step, config, len(data.train))
    facts = {"steps": step, "examples": where["examples"], "epochs": where["epoch"]}
    # copies: the members of an ensemble share one network
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in state_of(model).items()}
    return Outcome(ending.status, ending.reason, {**facts, **values}, weights, predictions)
