"""A curvature matrix of a model's mean loss as an operator: how its products are computed, kept and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpness.operators.differences import difference_product
from sharpness.operators.products import Kind, Product, double_backward, drawn_targets, forward_over_reverse, twice_differentiable
from sharpness.operators.replay import Tape, TapeError
from sharpness.operators.replicas import places
from sharpness.operators.verification import CurvatureCheck, curvature_check, suspects
from sharpness.problem.arguments import check_choice, check_count
from sharpness.problem.batches import OutputBytes
from sharpness.problem.calls import exhausted, is_own, said
from sharpness.problem.make_problem import in_chunks
from sharpness.problem.module_state import modules_of
from sharpness.problem.nested import cloned, identical, to_device
from sharpness.problem.problem import Problem
from sharpness.problem.result import Result
from sharpness.problem.untouched import Mode

Array = TypeVar("Array", Tensor, NDArray[Any])
Route = Literal["tape", "graph", "rebuilt", "differences"]
Method = Literal["exact", "differences"]

MEMORY = 2 * 2**30
_GRAPH_PRODUCTS = 30  # after so many, recording pays: it costs 3 to 8 gradients, and saves up to 0.6 a product
_PARTS = 4  # of a batch, where nothing is kept: a product's peak is 2 to 4 times that of a gradient
_AGREEMENT = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-8}


@dataclass(frozen=True, repr=False)
class OperatorCheck(Result):
    """Whether an operator is the same linear, symmetric map each time.

    Attributes:
        passed: no difference exceeds `tolerance`.
        loss, gradient: relative differences between two passes over the data; they show data or a model that
            draws anew each time.
        product: relative difference between the operator's product and one by double backward through a new
            pass.
        asymmetry: |u^T M v - v^T M u| / (||M u|| + ||M v||) for random unit u, v.
        tolerance: of the operator's precision; examples, dtype, mode, seed: as in other results.
        status: "ok", or the name of the worst difference.
    """

    passed: bool
    loss: float
    gradient: float
    product: float
    asymmetry: float
    tolerance: float
    examples: int
    dtype: str
    mode: Mode
    seed: int
    status: str


class CurvatureOperator:
    """A symmetric matrix M [n, n] of the mean loss at the weights the model had at construction: `op @ v`.

    v is a numpy array or a torch tensor, [n] or [n, k] (column by column); the product is of the same kind,
    in float64: each batch's product is computed in the parameters' precision and accumulated over batches
    in float64.

    Attributes: `shape` (n, n); `dtype`, the precision of the products' arithmetic; `matvecs`, products so
        far; `kind`; `examples`, `mode`, `names` of the parameters; `route`, None before the first product, then
        "graph" (the gradient's graph is kept), after thirty products "tape" (recorded once and replayed),
        "rebuilt" (batch by batch, anew each time), or "differences" (asked for by `method`); `retained_bytes`, the most
        that is kept between products.
    """

    def __init__(
        self,
        problem: Problem,
        kind: Kind = "hessian",
        *,
        sampled: bool = False,
        memory: int = MEMORY,
        devices: Sequence[str] | None = None,
        record_after: int | None = None,
        method: Method = "exact",
    ) -> None:
        check_choice("method", method, ("exact", "differences"))
        check_count("memory", memory, "2**31 (bytes), or 0 to keep nothing", least=0)
        self.method: Method = method
        self._problem = problem
        self.kind: Kind = kind
        self.shape = (problem.n, problem.n)
        self.dtype = problem.dtype
        self.matvecs = 0
        self.examples = problem.examples
        self.mode: Mode = problem.mode
        self.names = problem.names
        self.semidefinite = kind.startswith("fisher")  # ggn: where the loss is known to be convex
        self.route: Route | None = None
        self.retained_bytes = 0
        self._sampled, self._memory = sampled, memory
        self._smaller = problem  # what "rebuilt" goes through
        self._state = [t.detach().clone() for t in self._live_state()]
        self._stamp = self._present_stamp()
        self._places = places(problem, devices)
        if devices is not None:
            self._require_same_gradients()
        self._kept: list[tuple[float, int, Product]] = []  # weight, place, product of each batch
        self._gradient: NDArray[np.float64] | None = None
        self._first: tuple[Tensor, Tensor] | None = None  # vector and product
        self._recorded = False  # whether it was tried
        self._record_after = record_after  # products; None: as many as usual
        self._check: CurvatureCheck | None = None

    def __matmul__(self, v: Array) -> Array:
        if isinstance(v, Tensor):
            product = self._apply(v.detach().double().cpu())
            return product.to(v.device)  # pyright: ignore[reportReturnType]
        return self._apply(torch.as_tensor(np.asarray(v, dtype=np.float64))).numpy()  # pyright: ignore[reportReturnType]

    def starting_vector(self) -> NDArray[np.float64] | None:
        """A direction [n] with a large part in the leading eigenvectors, for Krylov methods: the gradient.

        It comes for nothing when a product has been made and the graph is kept; None where it does not, or
        vanishes. That gradients lie mostly in the leading eigenspace is Gur-Ari et al. 2018's observation.
        """
        if self.route is None:
            with self._guard():
                self._prepare()
        return self._gradient if self._gradient is not None and np.any(self._gradient) else None

    @property
    def verified(self) -> CurvatureCheck | None:
        """What products were compared with before the first one was given out; None with method "differences".

        Raises ValueError where they are not those of the matrix: see `hessian`.
        """
        if self._check is None and self.method == "exact":
            with self._guard():
                self._check = self._verify()
        return self._check

    @property
    def curvature_check(self) -> float | None:
        """The size of `verified`, for the certificates of results."""
        return None if self.verified is None else self.verified.size

    def _verify(self) -> CurvatureCheck:
        """Inside the guard. Raises ValueError where derivatives are wrong, or do not exist."""

        def compared(inputs: Any, targets: Any) -> tuple[CurvatureCheck, str]:
            if self._sampled:
                with self._problem.without_gradients():
                    targets = drawn_targets(self._problem.outputs(inputs), targets)
            try:
                found = curvature_check(self._problem, self.kind, inputs, targets)
            except Exception as error:
                raise self._without_derivative(error) from error
            wrong = found.status in ("product", "gradient")
            return found, suspects(self._problem, inputs, targets) if wrong else ""

        found, where = self._problem.on_first(compared)
        named = f"; {where} may be why" if where else ""
        if found.status == "product":
            raise ValueError(
                f"second derivatives are off by {found.size:.2g} (relative) from differences of gradients{named}: a function "
                "written by hand needs a differentiable backward; hessian, ggn, fisher with method='differences' do without it"
            )
        if found.status == "gradient":
            raise ValueError(
                f"the gradient is off by {found.gradient:.2g} (relative) from differences of the loss{named} (detached parts, "
                "straight-through or reversed gradients): no curvature of one function belongs to it"
            )
        return found

    def _without_derivative(self, error: Exception) -> Exception:
        """torch's word that a derivative does not exist as one sentence; anything else as it is."""
        if is_own(error) or exhausted(error) or not isinstance(error, (RuntimeError, NotImplementedError)):
            return error
        remedy = "checkpoint with use_reentrant=False" if "heckpoint" in str(error) else "pass method='differences'"
        return ValueError(f"an operation has no second derivative in torch ({said(error)}): {remedy}")

    def check(self, *, seed: int = 0) -> OperatorCheck:
        """Look for non-determinism and asymmetry, at the cost of two gradients and about five products.

        Nothing of the model moves, batch-norm statistics neither; a loader that only shuffles passes.
        """
        rng, n, tolerance = np.random.default_rng(seed), self.shape[0], 10 * _AGREEMENT[self.dtype]
        u, v = rng.standard_normal((2, n)) / np.sqrt(n)
        with self._guard():
            mu, mv = (self._by_route(torch.from_numpy(x)).numpy() for x in (u, v))
            (f1, g1), (f2, g2) = (self._problem.mean_loss_and_gradient() for _ in range(2))
            again = (
                self._by_route(torch.from_numpy(v)) if self.method == "differences"
                else self._sum(torch.from_numpy(v), self._rebuilt())
            ).numpy()
        size = float(np.linalg.norm(mu) + np.linalg.norm(mv))
        found = {
            "loss": _relative(f1, f2),
            "gradient": _relative(g1, g2),
            "product": _relative(mv, again),
            "asymmetry": abs(float(u @ mv - v @ mu)) / size if size else 0.0,
        }
        worst = max(found, key=lambda name: found[name])
        passed = bool(found[worst] <= tolerance)
        return OperatorCheck(
            passed, **found, tolerance=tolerance, examples=self.examples, dtype=self.dtype.name,
            mode=self.mode, seed=seed, status="ok" if passed else worst,
        )

    @contextmanager
    def _guard(self) -> Iterator[None]:
        self._require_same_weights()
        with ExitStack() as stack:
            for problem in {id(p): p for p in (self._problem, *self._places)}.values():
                stack.enter_context(problem.guard())
            stack.enter_context(twice_differentiable())
            yield

    def _apply(self, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or len(v) != self.shape[0]:
            raise ValueError(
                f"v has shape {tuple(v.shape)}: the operator needs [{self.shape[0]}] or [{self.shape[0]}, k]"
            )
        if v.ndim == 2:
            columns = [self._product(column) for column in v.T]
            return torch.stack(columns, dim=1) if columns else torch.zeros_like(v)
        return self._product(v)

    def _product(self, v: Tensor) -> Tensor:
        with self._guard():
            product = self._by_route(v)
        self._require_symmetry(v, product)
        return product

    def _require_symmetry(self, v: Tensor, product: Tensor) -> None:
        """u^T M v = v^T M u for the first product and each later one: free, and false for second derivatives
        that torch computes wrongly or drops in silence (functions that may be differentiated once)."""
        if self._first is None:
            self._first = (v.clone(), product)
            return
        u, image = self._first
        size = float(u.norm() * product.norm() + v.norm() * image.norm())
        floor = 100 * np.finfo(self.dtype).eps  # curvature below it is rounding, which need not be symmetric
        noise = float(product.norm()) <= floor * float(v.norm()) or float(image.norm()) <= floor * float(u.norm())
        if not noise and abs(float(u @ product - v @ image)) > 10 * _AGREEMENT[self.dtype] * size:
            if self.method == "differences":
                raise ValueError(
                    "products are not symmetric: a step of the differences crosses a kink (ReLU, max-pooling, clamp), or the "
                    "data or the model draw anew each time: measure on fewer examples, in float64, or with smooth activations"
                )
            raise ValueError(
                "products are not symmetric: the data or the model draw anew each time, or an operation of the model "
                "has no second derivative (such as a function that may be differentiated once): see op.check()"
            )

    def _by_route(self, v: Tensor) -> Tensor:
        """By the tapes, the graphs or anew."""
        if self.route is None:
            self._prepare()
        self.matvecs += 1
        if self.route == "differences":
            return difference_product(self.kind, self._problem, v, self._sampled)
        after = _GRAPH_PRODUCTS if self._record_after is None else self._record_after
        if self.route == "graph" and not self._recorded and self.matvecs > after:
            return self._record(v)
        return self._sum(v, self._kept if self.route != "rebuilt" else self._rebuilt())

    def _sum(self, v: Tensor, products: Any) -> Tensor:
        """sum_b weight_b M_b v: float64, on each device apart until the end."""
        parts = [place.split(v) for place in self._places]
        totals = [torch.zeros_like(v, device=place.parameters[0].device) for place in self._places]
        for weight, place, product in products:
            totals[place].add_(self._places[place].flatten(product(parts[place])), alpha=weight)
        return sum((t.cpu() for t in totals[1:]), start=totals[0].cpu())

    def _prepare(self) -> None:
        """Choose the route: the gradient's graph of each batch, if all of them fit into memory."""
        self._kept, self.retained_bytes = [], 0
        if self.method == "differences":
            self.route = "differences"
            return
        if self._check is None:
            self._check = self._verify()
        gradient = torch.zeros(self.shape[0], dtype=torch.float64)
        for weight, place, inputs, targets in self._batches(self._problem) if self._memory > 0 else ():
            if self._kept:
                product, slopes = self._by_double_backward(place, inputs, targets)
            else:
                with OutputBytes() as written:  # no less than what the graph keeps
                    product, slopes = self._by_double_backward(place, inputs, targets)
                if written.total / weight > self._memory:
                    break
                self.retained_bytes = int(written.total / weight)
            self._kept.append((weight, place, product))
            if slopes is not None:
                gradient.add_(self._places[place].flatten(slopes).cpu(), alpha=weight)
        self.route, self._gradient = ("graph", gradient.numpy()) if self._kept else ("rebuilt", None)
        if self.route == "rebuilt":
            self._smaller = in_chunks(self._problem, _PARTS)

    def _record(self, v: Tensor) -> Tensor:
        """The product with v, recorded on the way: each tape takes the place of its graph.

        Each must agree with its graph; torch.func cannot go everywhere, and where it went wrong (weights
        that a module keeps in a second place) its product is another one. Then the graphs stay.
        """
        self._recorded = True
        total, tapes = torch.zeros_like(v), []
        for graph, (weight, place, inputs, targets) in zip(self._kept, self._batches(self._problem), strict=True):
            parts, flatten = self._places[place].split(v), self._places[place].flatten
            try:
                tape = Tape(self._forward(place, inputs, targets), parts)
            except (TapeError, RuntimeError, NotImplementedError):
                return self._sum(v, self._kept)
            product, expected = flatten(tape.first).cpu(), flatten(graph[2](parts)).cpu()
            fits = tape.nbytes / weight <= self._memory
            if not fits or _relative(product.numpy(), expected.numpy()) > _AGREEMENT[self.dtype]:
                return self._sum(v, self._kept)
            tape.first = []
            tapes.append((weight, place, tape))
            total.add_(product, alpha=weight)
        self.route, self._kept = "tape", tapes
        self.retained_bytes = sum(tape.nbytes for _, _, tape in tapes)
        return total

    def _forward(self, place: int, inputs: Any, targets: Any) -> Product:
        return forward_over_reverse(self.kind, self._places[place], inputs, targets)

    def _by_double_backward(
        self, place: int, inputs: Any, targets: Any
    ) -> tuple[Product, Sequence[Tensor | None] | None]:
        try:
            return double_backward(self.kind, self._places[place], inputs, targets)
        except Exception as error:
            raise self._without_derivative(error) from error

    def _rebuilt(self) -> Iterator[tuple[float, int, Product]]:
        for weight, place, inputs, targets in self._batches(self._smaller):
            yield weight, place, self._by_double_backward(place, inputs, targets)[0]

    def _batches(self, problem: Problem) -> Iterator[tuple[float, int, Any, Any]]:
        for index, (inputs, targets, weight) in enumerate(problem.passes()):
            if self._sampled:
                with self._problem.without_gradients():
                    targets = drawn_targets(self._problem.outputs(inputs), targets)
            place = index % len(self._places)
            device = self._places[place].parameters[0].device
            yield weight, place, to_device(inputs, device), to_device(targets, device)

    def _require_same_gradients(self) -> None:
        """A loss that reads the model's weights sees the original's, not those of the copies."""

        def gradients(inputs: Any, targets: Any) -> list[NDArray[np.float64]]:
            found = []
            for problem in (self._problem, *self._places):
                value = problem.batch_loss(to_device(cloned(inputs), problem.device), to_device(targets, problem.device))
                slopes = torch.autograd.grad(value, problem.parameters, allow_unused=True)
                found.append(problem.flatten(slopes).cpu().numpy())
            return found

        with self._guard():
            found = self._problem.on_first(gradients)
        if any(_relative(found[0], other) > 10 * _AGREEMENT[self.dtype] for other in found[1:]):
            raise ValueError(
                "loss has another gradient with copies of the model: one that reads the model's own weights (a "
                "regulariser) does not see the copies; leave devices None"
            )

    def _live_state(self) -> list[Tensor]:
        modules = modules_of([self._problem.model, self._problem.criterion])
        held = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        return list({id(t): t for t in held}.values())

    def _present_stamp(self) -> list[tuple[int, int]]:
        return [(_place(t), 0 if t.is_inference() else t._version) for t in self._live_state()]

    def _require_same_weights(self) -> None:
        """Compare values: writes through `.data` raise no version. Rewritten tensors need a new graph."""
        now = self._live_state()
        same = len(now) == len(self._state) and all(
            identical(a, b) for a, b in zip(now, self._state, strict=True)
        )
        if not same:
            raise ValueError(
                "model changed since the operator was made: make it again for the new weights"
            )
        stamp = self._present_stamp()
        if stamp != self._stamp:
            self._kept, self.route, self._recorded, self._stamp = [], None, False, stamp
            self._first = None


def _place(t: Tensor) -> int:
    return t.data_ptr() if t.layout == torch.strided else id(t)


def _relative(a: Any, b: Any) -> float:
    """||a - b|| over the larger norm; 0 for two zeros, infinite where either is not finite."""
    a, b = np.asarray(a), np.asarray(b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / size if size else 0.0
