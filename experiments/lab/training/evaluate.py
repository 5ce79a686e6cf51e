"""Evaluation-mode passes: unaugmented, in float32 (or float64), with batch-norm statistics recomputed first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.lab.datasets import Kind
from experiments.lab.models.norms import calibrate
from experiments.lab.training.losses import CLASSIFICATION, IGNORED, Task

BATCH = 1000
"""examples per forward pass of evaluation; changes rounding only"""
CALIBRATION_BATCH = 250
CALIBRATION_EXAMPLES = 5000
"""one fixed size and subset for every run: evaluation statistics must not depend on the training batch"""


@dataclass(frozen=True)
class Scores:
    """Mean loss (cross-entropy: nats per example or token); accuracy in percent, or R^2 (the mean over columns), null where it
    has no meaning; losses [N], where the loss is one of each example; predicted classes [N]."""

    loss: float
    accuracy: float | None
    r2: float | None
    losses: Tensor | None
    predictions: Tensor | None


def calibrate_on(model: nn.Module, inputs: Tensor) -> None:
    """Recompute batch-norm statistics on the first `CALIBRATION_EXAMPLES` training inputs, whole batches only."""
    kept = inputs[:CALIBRATION_EXAMPLES]
    size = min(CALIBRATION_BATCH, len(kept))
    calibrate(model, kept[: len(kept) // size * size].split(size))


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor, task: Task = CLASSIFICATION) -> Scores:
    """Scores of `model` on inputs [N, ...] and targets [N, ...]; leaves its mode as it was."""
    mode = model.training
    model.eval()
    try:
        found, answers = [], []
        for x, y in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
            outputs = model(x)
            found.append(task.loss(outputs, y))
            answers.append(outputs.argmax(-1) if task.accurate and outputs.dim() > y.dim() else outputs)
    finally:
        model.train(mode)
    answered = torch.cat(answers)
    right, r2 = None, None
    if task.kind is Kind.NUMBERS:
        r2 = _r2(answered, targets) if answered.numel() == targets.numel() else None
    elif answered.shape == targets.shape and not answered.is_floating_point():
        counted = targets != IGNORED
        right = 100 * int((answered == targets)[counted].sum()) / max(1, int(counted.sum()))
    losses = torch.cat([t.sums if t.weights is None else t.sums / t.weights for t in found]) if found[0].sums.dim() else None
    if losses is not None and found[0].weights is None:
        loss = losses.double().mean().item()
    else:
        loss = math.fsum(t.total.item() for t in found) / math.fsum(t.weight.item() for t in found)
    predicted = answered.cpu() if task.kind is Kind.CLASSES and right is not None else None
    return Scores(loss, right, r2, None if losses is None else losses.cpu(), predicted)


def _r2(answers: Tensor, targets: Tensor) -> float | None:
    """1 - sum (y - f)^2 / sum (y - mean y)^2, the mean over columns; None where a column is the same everywhere."""
    y = targets.double().reshape(len(targets), -1)
    left = (y - answers.double().reshape(y.shape)).square().sum(0)
    spread = (y - y.mean(0)).square().sum(0)
    return None if bool((spread == 0).any()) else (1 - left / spread).mean().item()
