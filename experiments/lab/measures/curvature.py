"""Curvature and sharpness at a finished run's weights."""

from __future__ import annotations

from typing import Any

import sharpness
from experiments.lab.measures.subject import BATCH, Subject, head, measured, subset
from sharpness import CurvatureOperator, Eigenvalues

TOL = 1e-3
"""relative tolerance of the leading eigenpair where a metric has no option for it"""


def hessian_of(subject: Subject, examples: int) -> CurvatureOperator:
    """Of the run's own loss on its first training examples."""
    return sharpness.hessian(
        subject.model, subject.loss, subset(subject, examples), batch_size=BATCH, weight=subject.data.task.weight
    )


def top_eigenpair(subject: Subject, examples: int, tol: float, seed: int) -> Eigenvalues:
    """The Hessian's leading eigenvalue and eigenvector; the same whichever measurement asks first."""
    key = (examples, tol, seed)
    if key not in subject.eigenpairs:
        operator = hessian_of(subject, examples)
        subject.eigenpairs[key] = sharpness.top_eigenvalues(operator, tol=tol, seed=seed)
    return subject.eigenpairs[key]


def lambda_max(subject: Subject, *, examples: int, tol: float, seed: int) -> dict[str, Any]:
    """Largest eigenvalue of the Hessian of the run's mean loss."""
    result = top_eigenpair(subject, examples, tol, seed)
    return {
        **head(subject, examples, seed),
        "value": float(result.values[0]),
        "residual": float(result.residuals[0]),
        "products": result.matvecs,
        "status": result.status,
    }


def norm_scaled_lambda(subject: Subject, *, examples: int, tol: float, seed: int) -> dict[str, Any]:
    """||w||^2 times the largest eigenvalue: curvature per relative change of all weights together."""
    result = top_eigenpair(subject, examples, tol, seed)
    scaled = sharpness.norm_scaled(result, subject.model)
    assert scaled.residuals is not None  # made of an `Eigenvalues`
    return lambda_max(subject, examples=examples, tol=tol, seed=seed) | {
        "value": float(scaled.values[0]),
        "residual": float(scaled.residuals[0]),
        "details": {"norm_squared": scaled.norm_squared},
    }


def trace(subject: Subject, *, examples: int, products: int, seed: int) -> dict[str, Any]:
    """Trace of the Hessian of the run's mean loss, by Hutch++."""
    operator = hessian_of(subject, examples)
    return measured(subject, examples, sharpness.trace(operator, matvecs=products, seed=seed))


def relative_trace(subject: Subject, *, examples: int, products: int, seed: int) -> dict[str, Any]:
    """sum_i w_i^2 H_ii, which a rescaling of ReLU layers does not change (Dinh et al. 2017)."""
    data = subset(subject, examples)
    found = sharpness.relative_trace(subject.model, subject.loss, data, probes=products, batch_size=BATCH,
                                    weight=subject.data.task.weight, seed=seed)
    return measured(subject, examples, found)


def adaptive_l2_step(subject: Subject, *, examples: int, rho: float, m: int, seed: int) -> dict[str, Any]:
    """Rise of the loss (nats) by one step of length rho relative to each weight: the mean over batches of m examples."""
    data = subset(subject, examples)
    found = sharpness.worst_case_sharpness(
        subject.model, subject.loss, data, rho=rho, adaptive=True, steps=1, m=min(m, len(data[1])),
        batch_size=BATCH, weight=subject.data.task.weight, seed=seed,
    )
    return measured(subject, examples, found)


def phi(subject: Subject, *, examples: int, epsilon: float, subspace: int | None = None, seed: int) -> dict[str, Any]:
    """Keskar et al. 2017, Metric 2.1, in percent: in the full space, or in `subspace` random directions."""
    vectors = top_eigenpair(subject, examples, TOL, seed).vectors
    result = sharpness.epsilon_sharpness(
        subject.model, subject.loss, subset(subject, examples), epsilon=epsilon, subspace=subspace, seed=seed,
        batch_size=BATCH, weight=subject.data.task.weight, eigenvector=None if vectors is None else vectors[0],
    )
    facts = result.to_dict()
    return {
        **head(subject, examples, seed),
        "value": result.value,
        "products": result.evaluations,
        "status": result.status,
        "details": {name: facts[name] for name in sorted(facts) if name not in ("value", "status", "seed")},
    }
