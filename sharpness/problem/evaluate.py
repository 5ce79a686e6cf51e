"""Loss and accuracy of a model over all data, at the weights that it has."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from sharpness.problem.problem import Problem


def evaluate(problem: Problem, *, finite: bool = False) -> tuple[float, float]:
    """Mean loss and accuracy over one pass at the present weights.

    The accuracy is NaN where outputs are no logits, or NaN themselves; with `finite`, infinite ones too.
    """
    loss, accuracy = 0.0, 0.0
    with problem.without_gradients():
        for inputs, targets, weight in problem.passes():
            outputs = problem.outputs(inputs)
            loss += weight * float(problem.loss(outputs, targets))
            accuracy += weight * _batch_accuracy(outputs, targets, finite)
    return (float("nan") if np.isnan(loss) else loss), accuracy  # NaN without a sign, as text has it


def _batch_accuracy(outputs: Any, targets: Any, finite: bool) -> float:
    indices = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()
    if not indices or not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(targets):
        return float("nan")
    if outputs.shape[1] < 2:
        return float("nan")  # one logit: argmax would call every example the first class
    if outputs.isnan().any() or (finite and outputs.isinf().any()):
        return float("nan")  # argmax would call NaN the largest logit
    return float((outputs.argmax(dim=1) == targets).double().mean())
