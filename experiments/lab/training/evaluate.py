"""Evaluation-mode passes: unaugmented, in float32 (or float64), with batch-norm statistics recomputed first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.lab.models.norms import calibrate

BATCH = 1000
"""examples per forward pass of evaluation; changes rounding only"""
CALIBRATION_BATCH = 250
CALIBRATION_EXAMPLES = 5000
"""one fixed size and subset for every run: evaluation statistics must not depend on the training batch"""


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats and accuracy in percent over `examples`, and per-example values [N]."""

    loss: float
    accuracy: float
    losses: Tensor
    predictions: Tensor


def calibrate_on(model: nn.Module, inputs: Tensor) -> None:
    """Recompute batch-norm statistics on the first `CALIBRATION_EXAMPLES` training inputs, whole batches only."""
    kept = inputs[:CALIBRATION_EXAMPLES]
    size = min(CALIBRATION_BATCH, len(kept))
    calibrate(model, kept[: len(kept) // size * size].split(size))


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """Scores of `model` on inputs [N, ...] and targets [N]; leaves its mode as it was."""
    mode = model.training
    model.eval()
    try:
        losses, predictions = [], []
        for x, y in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
            outputs = model(x)
            losses.append(nn.functional.cross_entropy(outputs, y, reduction="none"))
            predictions.append(outputs.argmax(1))
    finally:
        model.train(mode)
    loss, predicted = torch.cat(losses), torch.cat(predictions)
    correct = int((predicted == targets).sum())
    return Scores(loss.double().mean().item(), 100 * correct / len(targets), loss.cpu(), predicted.cpu())
