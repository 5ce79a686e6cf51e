"""Results of one matrix side by side: what cannot be true of it at once."""

from __future__ import annotations

import numpy as np

from sharpness.linalg.density import SpectralDensity
from sharpness.linalg.eigen import Eigenvalues
from sharpness.linalg.traces import FrobeniusNorm, Trace
from sharpness.problem.result import Result

_ERRORS = 5.0  # standard errors that sampling is allowed


def contradictions(*results: Result, semidefinite: bool = False) -> tuple[str, ...]:
    """Sentences that say which of these results of one symmetric matrix cannot both be true; empty for none.

    Known: ||H||_F >= |lambda|; for a matrix without negative eigenvalues (`semidefinite`, as a Fisher matrix is)
    tr H >= lambda; no Ritz value of a density lies beyond the extreme eigenvalues; the smallest eigenvalue is not
    above the largest. Estimates may be off by five standard errors. Results of other types say nothing here.

    Raises ValueError for something that is no result.
    """
    if wrong := [type(r).__name__ for r in results if not isinstance(r, Result)]:
        raise ValueError(f"results holds a {wrong[0]}: pass what trace, top_eigenvalues and their like returned")
    sizes = {r.n for r in results if isinstance(r, (Eigenvalues, FrobeniusNorm, Trace, SpectralDensity))}
    if len(sizes) > 1:
        return (f"the results are of matrices of {sorted(sizes)} rows: not of one",)
    found: list[str] = []
    sure = [r for r in results if isinstance(r, Eigenvalues) and r.status in ("converged", "precision")]
    for e in sure:
        near = e.residuals + 2 * e.tol * np.abs(e.values)  # some eigenvalue lies so near
        largest, size = float((e.values - near).max()), float((np.abs(e.values) - near).max())
        for r in results:
            if isinstance(r, FrobeniusNorm) and r.value + _ERRORS * r.standard_error < size:
                found.append(f"||H||_F is {r.value:.4g} +- {r.standard_error:.2g}, and an eigenvalue has magnitude {size:.4g}")
            if semidefinite and isinstance(r, Trace) and r.value + _ERRORS * r.standard_error < largest:
                found.append(f"tr H is {r.value:.4g} +- {r.standard_error:.2g}, and an eigenvalue is {largest:.4g}")
            if isinstance(r, SpectralDensity) and r.nodes:
                low, high = min(float(t[0]) for t in r.nodes), max(float(t[-1]) for t in r.nodes)
                rounding = 100 * np.finfo(e.dtype).eps * max(abs(low), abs(high))
                found += _beyond(e, low, high, float(near[0] + rounding))
        for other in sure:
            gap, slack = float(e.values[0] - other.values[0]), e.tol * abs(e.values[0]) + other.tol * abs(other.values[0])
            if (e.which, other.which) == ("SA", "LA") and gap > slack + e.residuals[0] + other.residuals[0]:
                found.append(f"the smallest eigenvalue is {e.values[0]:.4g} and the largest {other.values[0]:.4g}")
    return tuple(found)


def _beyond(e: Eigenvalues, low: float, high: float, near: float) -> list[str]:
    """Ritz values of a density lie between the extreme eigenvalues, whatever its probes."""
    first = float(e.values[0])
    if e.which == "LA" and high > first + near:
        return [f"the density has a node at {high:.4g}, and the largest eigenvalue is {first:.4g}"]
    if e.which == "SA" and low < first - near:
        return [f"the density has a node at {low:.4g}, and the smallest eigenvalue is {first:.4g}"]
    return []
