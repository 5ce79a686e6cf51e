"""The measures, each as numbers beside what is right, and what came of it in one word."""

from __future__ import annotations

import math
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # takes seconds, and an alarm must not interrupt it
from wild.oracle import Oracle
from wild.situation import Case, Situation
from wild.snapshot import changes, snapshot

import sharpness
from sharpness import (
    epsilon_sharpness,
    fisher,
    ggn,
    gradient_noise,
    hessian,
    random_perturbation,
    slice_1d,
    spectral_density,
    top_eigenvalues,
    trace,
    worst_case_sharpness,
)

LIBRARY = str(Path(sharpness.__file__).parent)
SECONDS = 20  # after which a measure counts as never ending
ALPHAS = (-0.5, 0.0, 0.5, 1.0)
DUMMY = [(torch.zeros(1, 1), torch.zeros(1))]

Numbers = Sequence[float] | np.ndarray


class TooLong(BaseException):
    """Not an Exception, so that nobody catches it on the way."""


def vector(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(n)


def _checked(result: Any, value: Any) -> Any:
    """What a result that says that it failed is worth: a status is a word too."""
    if result.status in ("nonfinite", "failed"):
        raise Said(result.status)
    return value


class Said(Exception):
    """A status that says that there is no number."""


def _mean(outputs: Any, targets: Any) -> Any:
    return outputs.mean()


def product(c: Case, n: int) -> Numbers:
    return hessian(c.model, c.loss, c.data, mode=c.mode, **c.options) @ vector(n)


def rebuilt(c: Case, n: int) -> Numbers:
    """The third product of an operator that may keep nothing."""
    op = hessian(c.model, c.loss, c.data, mode=c.mode, memory=0, **c.options)
    op @ vector(n)[::-1].copy()
    op @ vector(n)
    return op @ vector(n)


def eigenvalues(c: Case, n: int) -> Numbers:
    r = top_eigenvalues(hessian(c.model, c.loss, c.data, mode=c.mode, **c.options), tol=1e-4)
    return _checked(r, [r.value])


def matrix_trace(c: Case, n: int) -> Numbers:
    r = trace(hessian(c.model, c.loss, c.data, mode=c.mode, **c.options), matvecs=max(n, 4))
    return _checked(r, [r.value])


def density(op: Any) -> Numbers:
    r = spectral_density(op, probes=2, steps=8)
    return _checked(r, [r.integrate(lambda x: x)[0], r.integrate(lambda x: x**2)[0]])


def sam(c: Case, n: int) -> Numbers:
    r = worst_case_sharpness(c.model, c.loss, c.data, rho=0.05, steps=1, mode=c.mode, **c.options)
    return _checked(r, [r.value])


def sam_right(o: Oracle) -> Numbers:
    size = np.linalg.norm(o.gradient)
    return [o.at(o.w + 0.05 * o.gradient / size) - o.at(o.w) if size else 0.0]


def ascent(model: Any, loss: Any, data: Any, **options: Any) -> Numbers:
    r = worst_case_sharpness(model, loss, data, rho=0.5, steps=3, **options)
    return _checked(r, [r.value])


def phi(model: Any, loss: Any, data: Any, **options: Any) -> Numbers:
    r = epsilon_sharpness(model, loss, data, epsilon=0.05, iterations=5, starts=("origin",), **options)
    return _checked(r, [r.value])


def perturbation(model: Any, loss: Any, data: Any, **options: Any) -> Numbers:
    r = random_perturbation(model, loss, data, sigma=0.2, draws=4, **options)
    return _checked(r, [r.value])


def ends(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = torch.from_numpy(vector(sum(p.numel() for p in start.values()))).float().split([p.numel() for p in start.values()])
    return start, {name: p + 0.3 * step.reshape(p.shape) for (name, p), step in zip(start.items(), steps, strict=True)}


def along(c: Case, n: int) -> Numbers:
    start, end = ends(c.model)
    r = slice_1d(c.model, c.loss, c.data, start=start, end=end, alphas=ALPHAS, bn_mode="keep", mode=c.mode, **c.options)
    return _checked(r, r.losses)


def along_right(o: Oracle) -> Numbers:
    every = o.every
    w = torch.cat([p.detach().reshape(-1) for p in every]).numpy()
    step = 0.3 * vector(len(w))
    return [o.at(w + alpha * step, every) for alpha in ALPHAS]


def noise(c: Case, n: int) -> Numbers:
    r = gradient_noise(c.model, c.loss, c.data, mode=c.mode, **c.options)
    return _checked(r, [r.trace, r.gradient_squared])


def noise_right(o: Oracle) -> Numbers | None:
    if o.examples is None:
        return None
    g = o.example_gradients
    return [((g - g.mean(0)) ** 2).sum() / (len(g) - 1), float(g.mean(0) @ g.mean(0))]


def _on_case(f: Callable[..., Numbers]) -> Callable[[Case, int], Numbers]:
    return lambda c, n: f(c.model, c.loss, c.data, mode=c.mode, **c.options)


def _on_twin(f: Callable[..., Numbers]) -> Callable[[Oracle], Numbers]:
    return lambda o: f(o.twin(), _mean, DUMMY, mode="train" if o.model.training else "eval")


def _operator(make: Callable[..., Any], **options: Any) -> Callable[[Case, int], Numbers]:
    return lambda c, n: make(c.model, c.loss, c.data, mode=c.mode, **options, **c.options) @ vector(n)


MEASURES: dict[str, tuple[Callable[[Case, int], Numbers], Callable[[Oracle], Numbers | None]]] = {
    "product": (product, lambda o: o.hessian @ vector(o.n)),
    "rebuilt": (rebuilt, lambda o: o.hessian @ vector(o.n)),
    "eigenvalues": (eigenvalues, lambda o: [float(np.linalg.eigvalsh(o.hessian)[-1])]),
    "trace": (matrix_trace, lambda o: [float(np.trace(o.hessian))]),
    "density": (
        lambda c, n: density(hessian(c.model, c.loss, c.data, mode=c.mode, **c.options)),
        lambda o: density(o.hessian),
    ),
    "sam": (sam, sam_right),
    "ascent": (_on_case(ascent), _on_twin(ascent)),
    "phi": (_on_case(phi), _on_twin(phi)),
    "perturbation": (_on_case(perturbation), _on_twin(perturbation)),
    "slice": (along, along_right),
    "ggn": (_operator(ggn), lambda o: o.ggn @ vector(o.n)),
    "fisher": (_operator(fisher), lambda o: o.ggn @ vector(o.n)),  # one matrix for the losses that it is offered for
    "empirical": (
        _operator(fisher, kind="empirical"),
        lambda o: None if o.examples is None else o.fisher @ vector(o.n),
    ),
    "noise": (noise, noise_right),
}


def outcome(s: Situation, measure: str, c: Case | None = None) -> str:
    """ "right", "refused", or what is wrong: a number, another exception, something that the model did not get back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        c = c or s.make()
        ours, right = MEASURES[measure]
        held = list(c.data) if type(c.data) in (list, tuple) else None
        before = snapshot(c.model, c.loss, held)
        word, numbers = _attempt(c, ours)
        changed = changes(before, snapshot(c.model, c.loss, held))
        if changed:
            return f"changed: {', '.join(changed[:3])}"
        if numbers is None or (isinstance(numbers, np.ndarray) and not np.isfinite(numbers).all()):
            return word or "refused"  # a vector that holds NaN says itself that it is none
        if c.oracles is None:
            again = _attempt(c, ours)[1]
            return "right" if again is not None and _off(numbers, again) <= 1e-5 else "wrong: another number each time"
        oracles = known(s.make) if s.fixed else c.oracles()
        return judged(numbers, [right(o) for o in oracles], s.tolerance)


@cache
def known(make: Callable[[], Case]) -> Sequence[Oracle]:
    """The oracles of a case, whose dense matrices several measures share."""
    found = make().oracles
    assert found is not None
    return found()


def size(c: Case) -> int:
    return sum(p.numel() for p in c.model.parameters() if p.requires_grad and not torch.nn.parameter.is_lazy(p))


def _attempt(c: Case, ours: Callable[[Case, int], Numbers]) -> tuple[str, Numbers | None]:
    try:
        with limited(SECONDS):
            return "", ours(c, size(c))
    except TooLong:
        return f"no answer within {SECONDS} s", None
    except Said:
        return "refused", None
    except Exception as error:
        return ("refused" if one_sentence(error) else f"{type(error).__name__}: {str(error)[:100]!r}"), None


def judged(numbers: Numbers, candidates: Sequence[Numbers | None], tolerance: float) -> str:
    if not candidates or any(right is None for right in candidates):
        return "wrong: a number where there is none"
    off = min(_off(numbers, right) for right in candidates if right is not None)
    if off <= tolerance:
        return "right"
    return f"wrong: {100 * off:.3g}% off" if math.isfinite(off) else "wrong: not a number"


def _off(numbers: Numbers, right: Numbers) -> float:
    a, b = np.asarray(numbers, np.float64), np.asarray(right, np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return math.inf
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6))


def one_sentence(error: BaseException) -> bool:
    """A refusal: ValueError, raised by the library itself, in one short sentence."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    text = str(error)
    return isinstance(error, ValueError) and last.startswith(LIBRARY) and 0 < len(text) < 320 and "\n" not in text


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong in the main thread after so long."""

    def ring(*_: Any) -> None:
        raise TooLong

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
