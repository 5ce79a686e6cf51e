"""The routes to a product M v, cheapest first: replays, the kept graphs of the gradient, graphs built anew, and differences.

"graph": the gradient's graph of each batch is kept, if all of them fit into memory. "replay": after some products each graph
gives way to its recording. "rebuilt": batch by batch, in parts, anew for each product. "differences": of gradients, where it
is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpness.operators.differences import difference_product
from sharpness.operators.products import Kind, Product, double_backward, drawn_targets, forward_over_reverse
from sharpness.operators.recorder import ReplayError
from sharpness.operators.replay import Replay
from sharpness.operators.verification import AGREEMENT, relative, without_derivative
from sharpness.problem.batches import OutputBytes
from sharpness.problem.make_problem import in_chunks
from sharpness.problem.nested import to_device
from sharpness.problem.problem import Problem

Route = Literal["replay", "graph", "rebuilt", "differences"]
Method = Literal["exact", "differences"]
BatchProduct = tuple[float, int, Product]  # weight, replica, product of a batch

MEMORY = 2 * 2**30
_GRAPH_PRODUCTS = 30  # after so many, recording pays: it costs 3 to 8 gradients, and saves up to 0.6 per product
_PARTS = 4  # of a batch, where nothing is kept: a product's peak is 2 to 4 times that of a gradient


class Routes:
    """M v by one route, which is chosen before the first product. Everything happens inside the operator's `untouched`.

    Attributes: `route`, None until it is chosen; `retained_bytes`, the most that is kept between products; `gradient` [n], where
    it came for nothing; `num_hvps`, products so far.
    """

    def __init__(self, problem: Problem, kind: Kind, replicas: Sequence[Problem], *,
                 method: Method, sampled: bool, memory: int, record_after: int | None) -> None:
        self.route: Route | None = None
        self.retained_bytes, self.num_hvps = 0, 0
        self.gradient: NDArray[np.float64] | None = None
        self._kind: Kind = kind
        self._problem, self._replicas = problem, replicas
        self._method, self._sampled, self._memory = method, sampled, memory
        self._record_after = _GRAPH_PRODUCTS if record_after is None else record_after
        self._recorded = False  # whether it was tried
        self._kept: list[BatchProduct] = []
        self._smaller = problem  # what "rebuilt" goes through

    def forget(self) -> None:
        """Drop what is kept: tensors that it belongs to were rewritten."""
        self._kept, self.route, self._recorded = [], None, False

    def product(self, v: Tensor) -> Tensor:
        """M v [n] in float64, on the CPU."""
        assert self.route is not None
        self.num_hvps += 1
        if self.route == "graph" and not self._recorded and self.num_hvps > self._record_after:
            return self._record(v)
        return self.anew(v) if self.route in ("rebuilt", "differences") else self._sum(v, self._kept)

    def anew(self, v: Tensor) -> Tensor:
        """M v without anything that is kept."""
        if self._method == "differences":
            return difference_product(self._kind, self._problem, v, self._sampled)
        return self._sum(v, self._rebuilt())

    def choose(self) -> None:
        """The gradient's graph of each batch, if all of them fit into memory."""
        self._kept, self.retained_bytes = [], 0
        if self._method == "differences":
            self.route = "differences"
            return
        gradient = torch.zeros(self._problem.n, dtype=torch.float64)
        for weight, replica, inputs, targets in self._batches(self._problem) if self._memory > 0 else ():
            if self._kept:
                product, slopes = self._by_double_backward(replica, inputs, targets)
            else:
                with OutputBytes() as written:  # no less than what the graph keeps
                    product, slopes = self._by_double_backward(replica, inputs, targets)
                if written.total / weight > self._memory:
                    break
                self.retained_bytes = int(written.total / weight)
            self._kept.append((weight, replica, product))
            if slopes is not None:
                gradient.add_(self._replicas[replica].flatten(slopes).cpu(), alpha=weight)
        self.route, self.gradient = ("graph", gradient.numpy()) if self._kept else ("rebuilt", None)
        if self.route == "rebuilt":
            self._smaller = in_chunks(self._problem, _PARTS)

    def _record(self, v: Tensor) -> Tensor:
        """The product with v, recorded on the way: each replay takes the place of its graph.

        Each must agree with its graph; torch.func cannot go everywhere, and where it went wrong (weights
        that a module keeps in a second place) its product is another one. Then the graphs stay.
        """
        self._recorded = True
        total, replays, nbytes = torch.zeros_like(v), list[BatchProduct](), 0
        for graph, (weight, replica, inputs, targets) in zip(self._kept, self._batches(self._problem), strict=True):
            problem = self._replicas[replica]
            parts = problem.split(v)
            try:
                replay = Replay(forward_over_reverse(self._kind, problem, inputs, targets), parts)
            except (ReplayError, RuntimeError, NotImplementedError):
                return self._sum(v, self._kept)
            product, expected = problem.flatten(replay.first).cpu(), problem.flatten(graph[2](parts)).cpu()
            fits = replay.nbytes / weight <= self._memory
            if not fits or relative(product.numpy(), expected.numpy()) > AGREEMENT[problem.dtype]:
                return self._sum(v, self._kept)
            replay.first = []
            replays.append((weight, replica, replay))
            nbytes += replay.nbytes
            total.add_(product, alpha=weight)
        self.route, self._kept, self.retained_bytes = "replay", replays, nbytes
        return total

    def _rebuilt(self) -> Iterator[BatchProduct]:
        for weight, replica, inputs, targets in self._batches(self._smaller):
            yield weight, replica, self._by_double_backward(replica, inputs, targets)[0]

    def _by_double_backward(self, replica: int, inputs: Any, targets: Any) -> tuple[Product, Sequence[Tensor | None] | None]:
        try:
            return double_backward(self._kind, self._replicas[replica], inputs, targets)
        except Exception as error:
            raise without_derivative(error) from error

    def _sum(self, v: Tensor, products: Iterable[BatchProduct]) -> Tensor:
        """sum_b weight_b M_b v: float64, on each device apart until the end."""
        parts = [replica.split(v) for replica in self._replicas]
        totals = [torch.zeros_like(v, device=replica.device) for replica in self._replicas]
        for weight, replica, product in products:
            totals[replica].add_(self._replicas[replica].flatten(product(parts[replica])), alpha=weight)
        return sum((t.cpu() for t in totals[1:]), start=totals[0].cpu())

    def _batches(self, problem: Problem) -> Iterator[tuple[float, int, Any, Any]]:
        """(weight, replica, inputs, targets) of each batch, shared out among the replicas."""
        for index, (inputs, targets, weight) in enumerate(problem.passes()):
            if self._sampled:
                with self._problem.without_gradients():
                    targets = drawn_targets(self._problem.outputs(inputs), targets)
            replica = index % len(self._replicas)
            device = self._replicas[replica].device
            yield weight, replica, to_device(inputs, device), to_device(targets, device)
