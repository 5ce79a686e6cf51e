"""The diagonal of an operator: the curvature along each single weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from sharpness.linalg.operator import Operator, Vector, facts_of
from sharpness.linalg.traces import NonFiniteError, Probes
from sharpness.problem.arguments import check_flag
from sharpness.problem.progress import Progress
from sharpness.problem.result import Result

_BLOCK = 64  # probes at a time


@dataclass(frozen=True, repr=False)
class Diagonal(Result):
    """M_ii for all i.

    Attributes:
        values: [n], estimates or exact; `named_tensors(model, values)` gives them the parameters' shapes and names.
        standard_error: [n], of each value over probes; 0 where exact.
        trace: the sum of values.
        method: "unit vectors" (exact) or "random signs".
        matvecs, n, examples, dtype, mode, seed, curvature_check: as in `Trace`.
        status: as in `Trace`.
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"values", "standard_error"})

    values: Vector
    standard_error: Vector
    trace: float
    method: Literal["unit vectors", "random signs"]
    matvecs: int
    n: int
    examples: int | None
    dtype: str
    mode: str | None
    seed: int
    status: str
    curvature_check: float | None = None


def diagonal(op: Operator, *, matvecs: int = 100, exact: bool = False, seed: int = 0, progress: Progress = None) -> Diagonal:
    """The diagonal of an operator [n, n]: mean of z * (M z) over random sign vectors z, or exactly by n products (HVPs).

    E[z_i (M z)_i] = M_ii (Bekas, Kokiopoulou & Saad 2007). The variance of entry i over probes is the sum of M_ij^2 over
    j != i: with few probes a small entry beside large ones off the diagonal is all noise, of either sign: read
    `standard_error` first. As the size of a weight's curvature it misleads where weights act together, and under
    reparametrisation.

    Args:
        op: symmetric, with `shape` and `@` on [n, k] arrays.
        matvecs: HVPs, at least 2; n or more give the exact diagonal.
        exact: n HVPs, whatever `matvecs` is.
        seed: of the probes.
        progress: as in `trace`.

    Raises:
        ValueError: too small a budget, or an operator that is not square.
    """
    check_flag("exact", exact)
    budget = facts_of(op).n if exact else matvecs
    probes = Probes(op, budget, 2, "diagonal", seed, progress, "diagonal")
    n, m = probes.n, min(budget, probes.n)
    values, squares = np.zeros(n), np.zeros(n)
    try:
        for start in range(0, m, _BLOCK):
            k = min(_BLOCK, m - start)
            z = np.eye(n, k, -start) if probes.exact else probes.signs(k)
            samples = z * probes.apply(z)
            if probes.exact:
                values += samples.sum(axis=1)
                continue
            for count, sample in enumerate(samples.T, start + 1):  # Welford's running mean and sum of squares
                off = sample - values
                values += off / count
                squares += off * (sample - values)
    except NonFiniteError:
        values = squares = np.full(n, np.nan)
    facts: dict[str, Any] = probes.certificate(float(values.sum()), 0.0)
    return Diagonal(
        values=values,
        standard_error=np.zeros(n) if facts["status"] == "exact" else np.sqrt(squares / max(m - 1, 1) / m),
        trace=facts.pop("value"),
        method="unit vectors" if probes.exact else "random signs",
        **{name: value for name, value in facts.items() if name != "standard_error"},
    )
