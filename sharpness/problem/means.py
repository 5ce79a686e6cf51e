"""What the mean over all data is, where it comes in batches: each batch's share, found by looking at the loss.

f(w) = sum_b s_b loss_b(w) / sum_b s_b. A share s_b is the batch's number of examples for a loss that is a mean over
examples, and its number of counted targets for one that is a mean over targets which leaves some out. Which of the two it is
shows where a batch is cut in two: its loss must be the shares' mean of the parts' losses.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sharpness.problem.calls import Weighted, exhausted, length_of, said
from sharpness.problem.nested import rows, take, tensors_of

Weight = Literal["examples", "tokens"] | Callable[[Any, Any], float]
Rule = Literal["examples", "tokens"]
IGNORED = -100  # torch's own default of a class index that does not count
_TOLERANCE = 1e-4  # relative
_SMALLEST = 1e-3  # loss below which differences are compared with it
_ENTRIES = 2**25  # of outputs, above which one look must do


def share_of(weight: Weight) -> Callable[[Any, Any], float]:
    """(inputs, targets) -> s_b. Raises ValueError for an unknown name, and, later, for a share that is no weight."""
    if weight == "examples":
        return lambda inputs, targets: float(length_of(inputs, targets))
    if weight == "tokens":
        return lambda inputs, targets: float(counted(targets))
    if not callable(weight):
        raise ValueError(f"weight is {weight!r}: it must be 'examples', 'tokens', or a function of (inputs, targets)")

    def share(inputs: Any, targets: Any) -> float:
        try:
            found, value = weight(inputs, targets), math.nan
        except Exception as error:
            raise ValueError(f"weight fails on a batch ({said(error)})") from error
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # of what is no number
            value = math.nan if isinstance(found, (bool, str)) else float(found)
        if not 0 <= value < math.inf:
            raise ValueError(f"weight gave {found!r} for a batch: it must be a finite number of at least 0")
        return value

    return share


def counted(targets: Any) -> int:
    """Entries of all targets that are neither -100 nor NaN."""
    found = targets.targets if isinstance(targets, Weighted) else targets
    total = 0
    for t in tensors_of(found):
        dense = t.values() if t.is_nested or t.layout != torch.strided else t
        missing = dense.isnan() if dense.is_floating_point() else dense == IGNORED
        total += dense.numel() - int(missing.sum())
    return total


def rules_of(loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Any, length: int) -> set[str] | None:
    """Which rules the loss of this batch obeys, of "examples" and "tokens"; "within" beside them, or alone, where it lies
    between the losses of its parts, as any weighted mean does. None where it cannot be cut in two.

    Examples are ordered by their targets, so that the parts differ; outputs are looked at as they are and mixed with their
    neighbours', because at a fit every loss is 0.
    """
    if length < 2 or not cuttable(outputs, length) or not cuttable(targets, length):
        return None
    try:
        order = _by_target(targets, length)
        half = length // 2
        z, t = take(outputs, order, length), take(targets, order, length)
        first, second = (torch.arange(length, device=order.device)[part] for part in (slice(half), slice(half, None)))
        parts = [(take(t, index, length), len(index)) for index in (first, second)]
        found = {"examples", "tokens", "within"}
        looks = [z] if sum(x.numel() for x in tensors_of(z)) > _ENTRIES else [z, _mixed(z, length)]
        for y in looks:
            whole = float(loss(y, t))
            losses = [float(loss(take(y, index, length), part)) for index, (part, _) in zip((first, second), parts, strict=True)]
            slack = _TOLERANCE * max(abs(whole), _SMALLEST)
            for name, sizes in (("examples", [n for _, n in parts]), ("tokens", [counted(part) for part, _ in parts])):
                pairs = [(s, value) for s, value in zip(sizes, losses, strict=True) if s > 0]
                total = sum(s for s, _ in pairs)
                mean = sum(s * value for s, value in pairs) / total if total else math.nan
                if not abs(mean - whole) <= slack:
                    found.discard(name)
            if not min(losses) - slack <= whole <= max(losses) + slack:
                found.discard("within")
    except Exception as error:  # whatever a loss may raise for another number of rows: it cannot be cut
        if exhausted(error):
            raise
        return None
    return found


def is_summed(loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Any, once: float) -> bool:
    """Whether the loss doubles when the batch is repeated, on the outputs, so that BN has no say.

    At a loss of exactly zero the outputs are replaced by their mean, which is in the loss's domain whenever they are. A loss
    that does not accept the repeated batch cannot be checked.
    """
    length = rows(outputs)
    if not length or not cuttable(outputs, length) or not cuttable(targets, length):
        return False
    twice_over = torch.arange(length).repeat(2)
    try:
        if once == 0.0:
            outputs = _mixed(outputs, length, all_rows=True)
            once = float(loss(outputs, targets))
        twice = float(loss(take(outputs, twice_over, length), take(targets, twice_over, length)))
        middle = _mixed(outputs, length, share=0.5, all_rows=True)  # its rise has no constants
        rise = float(loss(middle, targets)) - once
        doubled = float(loss(take(middle, twice_over, length), take(targets, twice_over, length))) - twice
    except Exception as error:  # as above
        if exhausted(error):
            raise
        return False
    summed = abs(rise) > 1e-3 * abs(once) and abs(doubled - 2 * rise) < 1e-3 * abs(rise)
    return summed or (once != 0.0 and abs(twice - 2 * once) < 1e-3 * abs(once))


def cuttable(value: Any, length: int) -> bool:
    """Whether every tensor has the examples first."""
    found = list(tensors_of(value))
    return bool(found) and all(t.layout == torch.strided and t.ndim > 0 and t.size(0) == length for t in found)


def _by_target(targets: Any, length: int) -> Tensor:
    """Rows ordered by their targets, ignored ones first."""
    first = next(t for t in tensors_of(targets))
    keys = torch.nan_to_num(first.detach().reshape(length, -1).double(), nan=-1e300).mean(dim=1)
    return keys.argsort(stable=True)


def _mixed(outputs: Any, length: int, *, share: float = 1.0, all_rows: bool = False) -> Any:
    """Each example's outputs with their neighbour's, or with the mean of all: where a loss accepts two outputs it
    accepts what lies between them."""
    if isinstance(outputs, Tensor):
        if not outputs.is_floating_point():
            return outputs
        if all_rows:
            return torch.lerp(outputs, outputs.mean(dim=0, keepdim=True).expand_as(outputs), share)
        return torch.lerp(outputs, outputs.roll(1, 0), 0.3)
    if isinstance(outputs, dict):
        return {k: _mixed(v, length, share=share, all_rows=all_rows) for k, v in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        parts = [_mixed(v, length, share=share, all_rows=all_rows) for v in outputs]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else type(outputs)(parts)
    return outputs
