"""The Hessian's spectral density at a finished run's weights."""

from __future__ import annotations

from typing import Any

from experiments.lab.measures.curvature import hessian_of
from experiments.lab.measures.subject import Subject, head
from sharpness import spectral_density

EVERY = 10
"""of the 1,024 points of the density one in so many is kept; two are still nearer than the smoothing's standard deviation"""


def spectrum(subject: Subject, *, examples: int, probes: int, steps: int, seed: int) -> dict[str, Any]:
    """Density of the eigenvalues of the mean loss's Hessian, smoothed by a Gaussian of standard deviation `sigma`.

    Stochastic Lanczos quadrature (Ghorbani et al. 2019, section 2; see `sharpness.spectral_density`). `value` is the largest
    Ritz value; `details` hold `eigenvalue` and `density` (per unit of eigenvalue, integral 1), and `trace`, n times the
    density's mean.
    """
    operator = hessian_of(subject, examples)
    found = spectral_density(operator, probes=probes, steps=steps, seed=seed)
    mean, error = found.integrate(lambda t: t)
    return {
        **head(subject, examples, seed),
        "value": max((float(nodes[-1]) for nodes in found.nodes), default=float("nan")),
        "products": found.matvecs,
        "status": found.status,
        "details": {
            "eigenvalue": found.grid[::EVERY].tolist(),
            "density": found.values[::EVERY].tolist(),
            "sigma": found.sigma,
            "trace": found.n * mean,
            "trace_error": found.n * error,
            "probes": probes,
            "steps": steps,
        },
    }
