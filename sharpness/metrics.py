"""The table of what `panel` measures: each metric with its defaults, small enough for minutes on one core.

It owns these names: `python -m sharpness`, `python -m experiments measure` and the studies mean the same by them. To add a
metric of any model, write a row in `TABLE`. `about` says which number stands for the result, `work` what it takes, and `measure`
gets the `Subject` and the row's `options`, which a study may choose. They and `version` are written as they are (`0.01`,
not a name): plans read the rows' text, because they import no torch. Raise `version` when a metric's numbers or the default of
an option change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from sharpness.flatness.average_case import average_case_sharpness
from sharpness.flatness.basin import basin_radius, local_entropy
from sharpness.flatness.keskar import epsilon_sharpness
from sharpness.flatness.pac_bayes import pac_bayes_sigma
from sharpness.flatness.perturbation import random_perturbation
from sharpness.flatness.scale_aware import NormScaled, fisher_rao_norm, norm_scaled, relative_trace
from sharpness.flatness.worst_case import worst_case_sharpness
from sharpness.gradients.alignment import batch_sharpness, gradient_hessian_overlap
from sharpness.gradients.noise import gradient_noise
from sharpness.landscape.directions import random_direction
from sharpness.landscape.slices import Slice1D, slice_1d
from sharpness.linalg.density import SpectralDensity, spectral_density
from sharpness.linalg.eigen import Eigenvalues, top_eigenvalues
from sharpness.linalg.traces import effective_rank, frobenius_norm, trace
from sharpness.operators.curvature import fisher, ggn
from sharpness.operators.curvature_operator import CurvatureOperator
from sharpness.problem.batches import Data
from sharpness.problem.means import Weight
from sharpness.problem.problem import Problem
from sharpness.problem.progress import Progress
from sharpness.problem.result import Result

_TOP: dict[str, Any] = {"k": 5, "tol": 0.01, "max_matvecs": 60}  # its vectors span the space of gradient_overlap
_ROUGHLY: dict[str, Any] = {"tol": 0.05, "max_matvecs": 40}


class Subject:
    """What a metric is measured on: the problem, cut to its examples, and what metrics share."""

    def __init__(
        self, problem: Problem, data: Data, batch_size: int | None, weight: Weight | None = None, progress: Progress = None
    ) -> None:
        self.problem, self.data, self.progress = problem, data, progress
        self.pair = isinstance(data, tuple) and isinstance(data[0], Tensor)
        self._leading: dict[float, Eigenvalues] = {}
        self.options: dict[str, Any] = {"params": problem.names, "batch_size": batch_size, "mode": problem.mode, "weight": weight}

    def on(self, function: Callable[..., Any], **options: Any) -> Any:
        """A measurement of the model: `function` with everything that all of them take."""
        return self.unseeded(function, seed=self.problem.seed, **options)

    def unseeded(self, function: Callable[..., Any], **options: Any) -> Any:
        """The same for functions that draw nothing."""
        return self.make(function, progress=self.progress, **options)

    def make(self, function: Callable[..., Any], **options: Any) -> Any:
        """The same for functions that only build something."""
        return function(self.problem.model, self.problem.criterion, self.data, **(self.options | options))

    def of(self, function: Callable[..., Any], **options: Any) -> Any:
        """A measurement of the Hessian, whose recording is made once for all metrics that ask for it."""
        return function(self.operator, seed=self.problem.seed, progress=self.progress, **options)

    @cached_property
    def operator(self) -> CurvatureOperator:
        return CurvatureOperator(self.problem, record_after=0)  # a hundred products are to come

    def leading(self, tol: float) -> Eigenvalues:
        """The largest eigenvalue of the Hessian with its vector, computed once."""
        if tol not in self._leading:
            self._leading[tol] = self.of(top_eigenvalues, tol=tol)
        return self._leading[tol]


class Work(NamedTuple):
    """Passes without and with gradients, and products with a curvature matrix, at most or as a rule."""

    passes: int = 0
    gradients: int = 0
    products: int = 0


LEADING_WORK = Work(products=40)
"""of the eigenpair that `lambda_max` and others share"""


@dataclass(frozen=True)
class Metric:
    """An entry of the table.

    Attributes:
        name: as in `panel(..., metrics=[name])`.
        family: what kind of quantity it is.
        about: one sentence, with the value that stands for the result.
        examples: how many it is measured on at most, unless the caller says otherwise.
        work: what it takes, over these examples.
        measure: a pure function of the subject and the options.
        shares: whether it uses the Hessian that others use too.
        uses_leading: whether it uses the eigenpair of `lambda_max`, which is computed once.
        options: what a study may choose by name, with the defaults.
        version: of the meaning: another one for other numbers of the same name.
    """

    name: str
    family: str
    about: str
    examples: int
    work: Work
    measure: Callable[..., Result]
    shares: bool = False
    uses_leading: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


def headline(result: Result) -> tuple[float, float | None]:
    """The one number that stands for a result, as its metric's `about` says, and its standard error."""
    if isinstance(result, SpectralDensity):
        return result.integrate(np.abs)
    if isinstance(result, (Eigenvalues, NormScaled)):
        return float(result.values[0]), None
    if isinstance(result, Slice1D):
        losses = result.losses
        return float((losses[0] + losses[-1]) / 2 - losses[len(losses) // 2]), None
    facts = cast(Any, result)
    return float(facts.value), getattr(facts, "standard_error", None)


def _overlap(subject: Subject) -> Result:
    found = subject.of(top_eigenvalues, **_TOP | {"k": min(_TOP["k"], subject.problem.n)})
    vectors = found.vectors
    if vectors is None:
        raise FloatingPointError("a product of the Hessian was not finite, so that it has no eigenvectors here")
    return subject.on(gradient_hessian_overlap, op=subject.operator, vectors=vectors, mixtures=5)


def _phi(subject: Subject, *, epsilon: float, subspace: int | None = None) -> Result:
    vectors = subject.leading(1e-3).vectors
    vector = None if vectors is None else vectors[0]
    return subject.on(epsilon_sharpness, epsilon=epsilon, subspace=subspace, eigenvector=vector)


def _adaptive_l2_step(subject: Subject, *, rho: float, m: int) -> Result:
    batch = min(m, subject.problem.examples) if subject.pair else None
    return subject.on(worst_case_sharpness, rho=rho, steps=1, adaptive=True, m=batch)


def _top_of(operator: Callable[..., CurvatureOperator], **kind: Any) -> Callable[[Subject], Result]:
    def measure(subject: Subject) -> Result:
        op = subject.make(operator, seed=subject.problem.seed, **kind)
        return top_eigenvalues(op, seed=subject.problem.seed, progress=subject.progress, **_ROUGHLY)

    return measure


def _batch_sharpness(subject: Subject) -> Result:
    size = min(64, max(1, subject.problem.examples // 2))
    draws: dict[str, Any] = {"batch": size, "batches": 12} if subject.pair else {}
    options = {name: value for name, value in subject.options.items() if name != "batch_size"}
    p = subject.problem
    return batch_sharpness(p.model, p.criterion, subject.data, seed=p.seed, progress=subject.progress, **options, **draws)


def _worst(**options: Any) -> Callable[[Subject], Result]:
    """Two batches or more, where there are enough examples: they give the standard error."""

    def measure(subject: Subject) -> Result:
        if options.get("logit_normalised"):
            _require_classes(subject.problem)
        m = 64 if subject.pair and subject.problem.examples >= 128 else None
        return subject.on(worst_case_sharpness, m=m, **options)

    return measure


def _require_classes(problem: Problem) -> None:
    with problem.untouched(), problem.without_gradients():
        outputs, targets = problem.on_first(lambda inputs, targets: (problem.outputs(inputs), targets))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        raise ValueError("logits are normalised for outputs [b, classes] and targets [b] of class indices only")


def _random_slice(subject: Subject) -> Result:
    """From w to w + d, and as far to the other side."""
    problem = subject.problem
    model: nn.Module = problem.model
    d = random_direction(model, problem.seed, params=problem.names)
    start = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    steps = dict(zip(map(id, problem.parameters), problem.split(torch.from_numpy(d)), strict=True))
    end = {name: start[name] + steps[id(p)] if id(p) in steps else start[name]
           for name, p in model.named_parameters(remove_duplicate=False)}
    options = {name: value for name, value in subject.options.items() if name != "params"}
    return slice_1d(
        model, problem.criterion, subject.data, start=start, end=end, alphas=np.linspace(-0.5, 0.5, 9),
        bn_mode="keep", seed=problem.seed, progress=subject.progress, **options,
    )


_H, _F, _P, _W, _A, _G, _B = "spectrum", "Fisher", "Keskar", "random weights", "worst case", "gradient", "basin"

TABLE: tuple[Metric, ...] = (
    Metric("lambda_max", _H, "Largest eigenvalue of the Hessian.",
           128, Work(), lambda s, tol: s.leading(tol), shares=True, uses_leading=True, options={"tol": 1e-3}),
    Metric("lambda_min", _H, "Smallest eigenvalue of the Hessian, negative at a saddle.",
           128, Work(products=30), lambda s: s.of(top_eigenvalues, which="SA", tol=0.1, max_matvecs=30), shares=True),
    Metric("norm_scaled_lambda", _H, "Largest eigenvalue of the Hessian times ||w||^2.",
           128, Work(), lambda s, tol: norm_scaled(s.leading(tol), s.problem.model, params=s.problem.names),
           shares=True, uses_leading=True, options={"tol": 1e-3}),
    Metric("trace", _H, "Trace of the Hessian, by Hutch++.",
           128, Work(products=12), lambda s, products: s.of(trace, matvecs=products), shares=True, options={"products": 12}),
    Metric("effective_rank", _H, "tr(H)^2 / ||H||_F^2, the number of equal eigenvalues with these moments.",
           128, Work(products=10), lambda s: s.of(effective_rank, matvecs=10), shares=True),
    Metric("frobenius_norm", _H, "||H||_F, the root of the sum of the squared eigenvalues.",
           128, Work(products=10), lambda s: s.of(frobenius_norm, matvecs=10), shares=True),
    Metric("spectral_density", _H, "Density of the Hessian's eigenvalues, and the mean of |lambda|.",
           128, Work(products=24), lambda s: s.of(spectral_density, probes=2, steps=12), shares=True),
    Metric("gradient_overlap", _H, f"Share of the gradient in the space of the {_TOP['k']} top eigenvectors.",
           128, Work(0, 3, 71), _overlap, shares=True),
    Metric("phi_full", _P, "Keskar's sharpness in percent, eps 1e-3, all directions.",
           128, Work(gradients=44), _phi, shares=True, uses_leading=True, options={"epsilon": 1e-3}, version=2),
    Metric("phi_subspace", _P, "Keskar's sharpness in percent, eps 1e-3, 100 random directions.",
           128, Work(gradients=44), _phi, shares=True, uses_leading=True, options={"epsilon": 1e-3, "subspace": 100}, version=2),
    Metric("relative_trace", _H, "tr(H diag(w^2)), the trace in units of the weights.",
           128, Work(products=12), lambda s, products: s.on(relative_trace, probes=products), options={"products": 12}),
    Metric("ggn_lambda_max", _F, "Largest eigenvalue of the generalised Gauss-Newton matrix.",
           128, Work(products=40), _top_of(ggn)),
    Metric("fisher_lambda_max", _F, "Largest eigenvalue of the true Fisher matrix.", 128, Work(products=40), _top_of(fisher)),
    Metric("empirical_fisher_lambda_max", _F, "Largest eigenvalue of the mean of g_i g_i^T over examples.",
           128, Work(products=40), _top_of(fisher, kind="empirical")),
    Metric("fisher_rao_norm", _F, "sqrt(E <w, grad l>^2) with the labels of the data.",
           500, Work(gradients=1), lambda s: s.unseeded(fisher_rao_norm)),
    Metric("fisher_rao_norm_model", _F, "sqrt(E <w, grad l>^2) with labels of the model's own.",
           500, Work(gradients=2), lambda s: s.unseeded(fisher_rao_norm, labels="model")),
    Metric("gradient_noise", _G, "Simple noise scale tr(Sigma) / |G|^2, in examples.",
           250, Work(gradients=3), lambda s: s.unseeded(gradient_noise)),
    Metric("batch_sharpness", _G, "E[g^T H g] / E||g||^2 over batches of 64.", 500, Work(0, 2, 2), _batch_sharpness),
    Metric("random_perturbation", _W, "Mean rise of the loss under N(0, 0.01^2) on the weights.",
           250, Work(passes=11), lambda s: s.on(random_perturbation, sigma=0.01, draws=10)),
    Metric("average_adaptive", _W, "Mean rise of the loss under N(0, (0.1 w)^2) on the weights.",
           250, Work(passes=11), lambda s: s.on(average_case_sharpness, rho=0.1, draws=10)),
    Metric("pac_bayes_sigma", _W, "1 / sigma^2 of the Gaussian noise that costs a tenth of accuracy.",
           128, Work(passes=40), lambda s: s.on(pac_bayes_sigma, draws=4, tolerance=0.1)),
    Metric("pac_bayes_sigma_magnitude", _W, "The same for noise relative to each weight's magnitude.",
           128, Work(passes=40), lambda s: s.on(pac_bayes_sigma, draws=4, tolerance=0.1, scaling="magnitude")),
    Metric("worst_l2_step", _A, "Rise of the loss by one ascent step of length 0.05 (SAM).",
           128, Work(passes=1, gradients=1), _worst(rho=0.05, steps=1)),
    Metric("worst_l2", _A, "Largest rise found within distance 0.05.",
           128, Work(passes=1, gradients=10), _worst(rho=0.05, steps=10)),
    Metric("adaptive_l2_step", _A, "Rise by one relative ascent step of length 0.5 (ASAM), in batches of 128.",
           512, Work(passes=1, gradients=1), _adaptive_l2_step, options={"rho": 0.5, "m": 128}),
    Metric("adaptive_l2", _A, "Largest rise found within a relative distance of 0.5.",
           128, Work(passes=1, gradients=10), _worst(rho=0.5, steps=10, adaptive=True)),
    Metric("adaptive_linf_step", _A, "Rise by one ascent step that changes no weight by more than 0.2%.",
           128, Work(passes=1, gradients=1), _worst(rho=0.002, steps=1, norm="linf", adaptive=True)),
    Metric("adaptive_linf", _A, "Largest rise found where no weight changes by more than 0.2%.",
           128, Work(passes=1, gradients=10), _worst(rho=0.002, steps=10, norm="linf", adaptive=True)),
    Metric("adaptive_linf_logit_normalised", _A, "The same for the loss of the normalised logits.",
           128, Work(passes=1, gradients=10), _worst(rho=0.002, steps=10, norm="linf", adaptive=True, logit_normalised=True)),
    Metric("basin_radius", _B, "Mean log-distance to a rise of the loss by 0.1 along random directions.",
           128, Work(passes=60), lambda s: s.on(basin_radius, directions=6, tolerance=0.05)),
    Metric("local_entropy", _B, "log E exp(-(f(w') - f(w))) over w' within N(w, 0.01^2).",
           128, Work(passes=33), lambda s: s.on(local_entropy, gamma=1e4, samples=32)),
    Metric("random_slice", _B, "Mean rise half a filter-normalised random direction away, either side.",
           250, Work(passes=9), _random_slice),
)
