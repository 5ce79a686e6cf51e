"""Data that are another each time: the number is that of one pass they gave, of the examples they hold, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from wild.oracle import Oracle, by_rows, double
from wild.situation import ALL, Case, case, mlp, nothing, points, situation

KIND = "data that change"
PINNED = {"fixed": False, "measures": ("product", "rebuilt", "eigenvalues", "sam", "ascent", "phi", "slice", "perturbation"),
          "expected": "right or refused"}
FEW = {**PINNED, "measures": ("product", "rebuilt", "sam", "slice")}


class Recorded:
    """Passes over `data`, as they were given; the first hundred that were complete."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.passes: list[list[tuple[Any, Tensor]]] = []

    def __iter__(self) -> Iterator[Any]:
        seen = []
        for batch in self.data:
            seen.append((batch[0].clone(), batch[1].clone()))
            yield batch
        self.passes.append(seen)


def recorded(data: Any) -> Case:
    """Right is the number of any one of the passes."""
    net, watched = mlp(), Recorded(data)
    plain = mlp().double()
    plain.load_state_dict(net.state_dict())

    def oracles() -> list[Oracle]:
        unlike: list[list[tuple[Any, Tensor]]] = []
        for one in filter(None, watched.passes[:100]):  # a pass that gave nothing has no number
            if not any(_equal(one, other) for other in unlike):
                unlike.append(one)
        return [Oracle(plain, F.cross_entropy, by_rows(double(one))) for one in unlike[:20]]

    return Case(net, F.cross_entropy, watched, oracles)


def _equal(a: list[tuple[Any, Tensor]], b: list[tuple[Any, Tensor]]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, noise: Callable[[], Any]) -> None:
        self.x, self.y = points()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + self.noise(), self.y[i]


def set_of_points() -> TensorDataset:
    return TensorDataset(*points())


@situation(KIND, "loader that shuffles with its own generator", measures=ALL)
def _() -> Case:
    loader = DataLoader(set_of_points(), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(3))
    return case(mlp(), F.cross_entropy, loader, batches=[points_of(loader)])


def points_of(loader: Any) -> tuple[Tensor, Tensor]:
    return loader.dataset.tensors


@situation(KIND, "loader that shuffles with torch's generator")
def _() -> Case:
    loader = DataLoader(set_of_points(), batch_size=5, shuffle=True)
    return case(mlp(), F.cross_entropy, loader, batches=[points_of(loader)])


@situation(KIND, "augmentation by numpy's global generator", **PINNED)
def _() -> Case:
    return recorded(DataLoader(Augmented(lambda: float(np.random.randn())), batch_size=5))


@situation(KIND, "augmentation by a numpy generator of its own", **PINNED)
def _() -> Case:
    rng = np.random.default_rng(0)
    return recorded(DataLoader(Augmented(lambda: float(rng.standard_normal())), batch_size=5))


@situation(KIND, "augmentation by Python's random", **FEW)
def _() -> Case:
    return recorded(DataLoader(Augmented(random.random), batch_size=5))


@situation(KIND, "augmentation by torch's generator", **FEW)
def _() -> Case:
    return recorded(DataLoader(Augmented(lambda: torch.randn(())), batch_size=5))


@situation(KIND, "augmentation by a generator of torch of its own", **FEW)
def _() -> Case:
    g = torch.Generator().manual_seed(1)
    return recorded(DataLoader(Augmented(lambda: torch.randn((), generator=g)), batch_size=5))


@situation(KIND, "small augmentation", **FEW)
def _() -> Case:
    """Noise of 1e-3: a change that tolerances of comparisons could take for rounding."""
    return recorded(DataLoader(Augmented(lambda: 1e-3 * float(np.random.randn())), batch_size=5))


@situation(KIND, "augmentation of one late example", **FEW)
def _() -> Case:
    class Late(Augmented):
        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return (self.x[i] + (self.noise() if i == 11 else 0)), self.y[i]

    return recorded(DataLoader(Late(lambda: 3 * float(np.random.randn())), batch_size=5))


@situation(KIND, "mixing of pairs in the collate function", **FEW)
def _() -> Case:
    def mix(rows: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
        share = np.random.beta(0.4, 0.4)
        return share * x + (1 - share) * x.flip(0), y

    return recorded(DataLoader(set_of_points(), batch_size=6, collate_fn=mix))


@situation(KIND, "drop_last with shuffling by a generator of its own", **PINNED)
def _() -> Case:
    g = torch.Generator().manual_seed(3)
    return recorded(DataLoader(set_of_points(), batch_size=5, shuffle=True, drop_last=True, generator=g))


@situation(KIND, "drop_last with shuffling by torch's generator", **FEW)
def _() -> Case:
    return recorded(DataLoader(set_of_points(), batch_size=5, shuffle=True, drop_last=True))


@situation(KIND, "sampling with replacement", **FEW)
def _() -> Case:
    g = torch.Generator().manual_seed(3)
    sampler = WeightedRandomSampler(torch.ones(12), 12, generator=g)
    return recorded(DataLoader(set_of_points(), batch_size=5, sampler=sampler))


@situation(KIND, "batch sampler that shuffles", **FEW)
def _() -> Case:
    g = torch.Generator().manual_seed(3)
    sampler = BatchSampler(RandomSampler(range(12), generator=g), 5, True)
    return recorded(DataLoader(set_of_points(), batch_sampler=sampler))


@situation(KIND, "sampler of the next part of the data in each pass", **FEW)
def _() -> Case:
    class Parts:
        def __init__(self) -> None:
            self.epoch, (self.x, self.y) = 0, points(24)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            first = 6 * (self.epoch % 4)
            self.epoch += 1
            yield self.x[first : first + 3], self.y[first : first + 3]
            yield self.x[first + 3 : first + 6], self.y[first + 3 : first + 6]

    return recorded(Parts())


@situation(KIND, "augmentation that begins in the third pass", **FEW)
def _() -> Case:
    class Later:
        def __init__(self) -> None:
            self.epoch, (self.x, self.y) = 0, points()

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.epoch += 1
            for part in (slice(0, 6), slice(6, 12)):
                yield self.x[part] + max(0, self.epoch - 2), self.y[part]

    return recorded(Later())


@situation(KIND, "labels that change while inputs do not", **FEW)
def _() -> Case:
    class Noisy:
        def __init__(self) -> None:
            self.rng, (self.x, self.y) = np.random.default_rng(0), points()

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            flips = torch.from_numpy(self.rng.integers(0, 3, 12))
            for part in (slice(0, 6), slice(6, 12)):
                yield self.x[part], (self.y[part] + flips[part]) % 3

    return recorded(Noisy())


@situation(KIND, "fewer batches in the second pass", **FEW)
def _() -> Case:
    class Fewer:
        def __init__(self) -> None:
            self.epoch, (self.x, self.y) = 0, points(24)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.epoch += 1
            for first in range(0, 18 if self.epoch == 1 else 12, 6):
                yield self.x[first : first + 6], self.y[first : first + 6]

    return recorded(Fewer())


@situation(KIND, "nothing in the second pass", **FEW)
def _() -> Case:
    class Spent:
        def __init__(self) -> None:
            self.rest = iter([points(6), points(6)])

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from self.rest

    return recorded(Spent())


@situation(KIND, "other batches, the same examples", measures=("product", "sam", "slice", "noise"))
def _() -> Case:
    class Regrouped:
        def __init__(self) -> None:
            self.epoch, (self.x, self.y) = 0, points()

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.epoch += 1
            size = 3 + self.epoch % 3
            yield from zip(self.x.split(size), self.y.split(size), strict=True)

    return case(mlp(), F.cross_entropy, Regrouped(), batches=[points_again()])


def points_again() -> tuple[Tensor, Tensor]:
    """What `points` gave first under the seed of a case."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp()
        return points()


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.randn(4), torch.randint(3, ())


@situation(KIND, "endless stream", expected="refused", first="refused", examples="refused", measures=("product", "sam"))
def _() -> Case:
    return Case(mlp(), F.cross_entropy, DataLoader(Endless(), batch_size=4), nothing)


@situation(KIND, "endless repetition of a list", expected="refused", examples="refused", measures=("product",))
def _() -> Case:
    class Cycle:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            pair = points()
            while True:
                yield pair

    return Case(mlp(), F.cross_entropy, Cycle(), nothing)


for _name, _once in {
    "generator": lambda: (points() for _ in range(2)),
    "zip": lambda: zip(points(), points(), strict=True),
    "map": lambda: map(lambda i: points(), range(2)),
    "iterator of a loader": lambda: iter(DataLoader(set_of_points(), batch_size=5)),
}.items():

    @situation(
        KIND, f"can be gone through once: {_name}", expected="refused", examples="refused", measures=("product", "sam", "noise")
    )
    def _(once: Any = _once) -> Case:
        return Case(mlp(), F.cross_entropy, once(), nothing)


@situation(KIND, "one buffer, written anew for each batch", measures=ALL)
def _() -> Case:
    """A loader that prefetches into the same memory: a list of its batches holds the last one three times."""

    class Buffered:
        def __init__(self) -> None:
            self.x, self.y = points()
            self.into, self.labels = torch.empty(4, 4), torch.empty(4, dtype=torch.int64)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for first in (0, 4, 8):
                yield self.into.copy_(self.x[first : first + 4]), self.labels.copy_(self.y[first : first + 4])

    loader = Buffered()
    return case(mlp(), F.cross_entropy, loader, batches=[(loader.x, loader.y)])


@situation(KIND, "shuffled buffer, written anew for each batch", **FEW)
def _() -> Case:
    class Buffered:
        def __init__(self) -> None:
            self.x, self.y = points(24)
            self.into, self.labels, self.rng = torch.empty(4, 4), torch.empty(4, dtype=torch.int64), np.random.default_rng(0)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            rows = self.rng.permutation(24)
            for first in (0, 4, 8):
                some = torch.from_numpy(rows[first : first + 4])
                yield self.into.copy_(self.x[some]), self.labels.copy_(self.y[some])

    return recorded(Buffered())


@situation(KIND, "empty batch in the middle", measures=("product", "sam", "slice", "noise"))
def _() -> Case:
    x, y = points()
    return case(mlp(), F.cross_entropy, [(x[:5], y[:5]), (x[:0], y[:0]), (x[5:], y[5:])], batches=[(x, y)])


@situation(KIND, "batches as lists", measures=("product", "sam", "noise"))
def _() -> Case:
    x, y = points()
    return case(mlp(), F.cross_entropy, [[x[:5], y[:5]], [x[5:], y[5:]]], batches=[(x, y)])


@situation(KIND, "batches of numpy arrays", expected="right or refused", measures=("product", "sam", "noise"))
def _() -> Case:
    x, y = points()
    return case(mlp(), F.cross_entropy, [(x.numpy(), y.numpy())], batches=[(x, y)])


@situation(KIND, "dataset in place of a loader", expected="right or refused", measures=("product", "sam", "noise"))
def _() -> Case:
    """Single examples: batches without their first dimension."""
    data = set_of_points()
    return case(mlp(), F.cross_entropy, data, batches=[data.tensors])


@situation(KIND, "examples that are still attached to a graph", measures=("product", "sam", "slice", "noise"))
def _() -> Case:
    x, y = points()
    return case(mlp(), F.cross_entropy, [(x @ torch.randn(4, 4, requires_grad=True), y)])


@situation(KIND, "expanded inputs that share memory", measures=("product", "sam"))
def _() -> Case:
    x, y = points()
    return case(mlp(), F.cross_entropy, (x[:1].expand(12, 4), y))
