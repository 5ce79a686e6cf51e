"""One point of a slice: move the weights there, and give them their buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharpness.problem.arguments import check_choice, numbers_of, shown
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.parameters import Weights
from sharpness.problem.problem import Problem, Vector
from sharpness.problem.recalibration import BN_MODES, BnMode, recalibrate, refuse_unknown_statistics
from sharpness.problem.untouched import seed_generators

_CALIBRATION_BATCH = 256
Hook = Callable[[nn.Module], object]


@dataclass(frozen=True)
class WeightMover:
    """Puts the model at a point. A point is a function of its weights alone: buffers start anew at each one.

    `ends` are the state dicts whose buffers are interpolated, or twice the same for a centre; `own` the
    model's buffers as they came.
    """

    problem: Problem
    bn_mode: BnMode
    hook: Hook | None
    calibration: Problem | None
    ends: tuple[Weights, Weights] | None
    own: tuple[tuple[nn.Module, str, Tensor], ...]

    def replaces(self, name: str) -> bool:
        """Whether the buffer comes from the ends, and the model's own has no say."""
        return self.ends is not None and all(name in end for end in self.ends)

    def move(self, w: Vector, fraction: float = 0.0) -> None:
        """Weights w [n], buffers at `fraction` of the way between the ends; inside the problem's `untouched` and
        `movable`."""
        problem, model = self.problem, self.problem.model
        problem.move_to(w)
        copies = {id(buffer): buffer.clone() for _, _, buffer in self.own}
        for module, key, buffer in self.own:
            module._buffers[key] = copies[id(buffer)]
        with torch.no_grad():
            if self.ends is not None:
                _interpolate_buffers(model, *self.ends, fraction)
            if self.hook is not None:
                seed_generators(problem.parameters, problem.seed)
                before = problem.weights()
                self.hook(model)
                model.train(problem.mode == "train")
                if not np.array_equal(problem.weights(), before):
                    raise ValueError("recalibrate changed the weights, which are the point measured: let it move buffers only")
            elif self.calibration is not None:
                recalibrate(model, (x for x, _, _ in self.calibration.passes(restore=False)), self.calibration.outputs)


def make_weight_mover(
    problem: Problem,
    data: Data,
    bn_mode: BnMode,
    hook: Hook | None,
    calibration: Data | None,
    ends: tuple[Weights, Weights] | None,
    batch_size: int | None,
) -> WeightMover:
    """Check that the buffers' mode, hook and calibration fit together; outside the problem's `untouched`.

    Without a hook, "recalibrate" uses `calibration`, or else `data`. A pair of tensors is split by
    `batch_size`, or into equal batches of at most 256 examples, whatever chunks the loss is measured in:
    statistics depend on it.
    """
    check_choice("bn_mode", bn_mode, BN_MODES)
    if hook is not None and not callable(hook):
        raise ValueError(f"recalibrate is {shown(hook)}: it must be a function of the model, or None")
    if bn_mode != "recalibrate" and (hook is not None or calibration is not None):
        raise ValueError(f"bn_mode is {bn_mode!r} and recalibrate or calibration is given: they belong to 'recalibrate'")
    if hook is not None and calibration is not None:
        raise ValueError("recalibrate and calibration are both given: the hook chooses its own data, leave one")
    statistics = None
    if bn_mode == "recalibrate" and hook is None:
        refuse_unknown_statistics(problem.model)
        source, size = data if calibration is None else calibration, batch_size
        if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(p, Tensor) for p in source):
            source = source if size else _equal_batches(*source)
        else:
            size = None
        statistics = make_problem(problem.model, problem.criterion, source, params=problem.names, batch_size=size,
                                  mode=problem.mode, seed=problem.seed)
    own = tuple((m, key, b) for m in problem.model.modules() for key, b in m._buffers.items() if b is not None)
    return WeightMover(problem, bn_mode, hook, statistics, ends, own)


def _equal_batches(inputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
    """Lengths differ by one at most: a short last batch could have no variance."""
    count = max(1, -(-len(inputs) // _CALIBRATION_BATCH))
    return list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))


def _interpolate_buffers(model: nn.Module, start: Weights, end: Weights, fraction: float) -> None:
    """In place; `fraction` is clipped to [0, 1], because extrapolated variances could be negative."""
    inside = min(max(fraction, 0.0), 1.0)
    for name, buffer in model.named_buffers():
        if name in start and name in end:
            a, b = start[name].to(buffer.device), end[name].to(buffer.device)
            if buffer.is_floating_point():
                buffer.copy_((1.0 - inside) * a.double() + inside * b.double())
            else:
                buffer.copy_(a if inside < 0.5 else b)


def grid_axis(name: str, values: Sequence[float] | Vector) -> Vector:
    """`values` as float64 [m]; raises ValueError unless they are a non-empty list of finite numbers."""
    points = numbers_of(name, values, "a sequence of finite numbers")
    if points.ndim != 1 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{name} must be a non-empty one-dimensional sequence of finite numbers")
    return points


def known_or_none(accuracies: Vector) -> Vector | None:
    """None where no point has an accuracy."""
    return None if np.isnan(accuracies).all() else accuracies
