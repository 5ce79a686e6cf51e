"""What a situation is: a model, its loss and its data as somebody brings them, and what is right for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from wild.oracle import Oracle, by_rows, double, singles

Expected = Literal["right", "refused", "right or refused"]
SECOND = ("product", "rebuilt", "eigenvalues", "trace", "density")
FIRST = ("sam", "ascent", "phi", "perturbation", "slice")
EXAMPLES = ("ggn", "fisher", "empirical", "noise")
ALL = SECOND + FIRST + EXAMPLES
TELLING = ("product", "eigenvalues", "sam", "slice", "ggn", "noise")


@dataclass(frozen=True)
class Case:
    """A model, a loss and data; `oracles` are what is right: more than one where the data may be pinned to any of the
    passes they gave, which then are known only afterwards; none where no number is right. None: only the same number
    twice can be asked for."""

    model: nn.Module
    loss: Callable[..., Tensor]
    data: Any
    oracles: Callable[[], Sequence[Oracle]] | None
    mode: Literal["eval", "train"] = "eval"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Situation:
    """name, kind; make: a new case each time, always the same; expected: of second derivatives; first: of losses and
    gradients; examples: of ggn, Fisher and noise; fixed: whether what is right is known before."""

    name: str
    kind: str
    make: Callable[[], Case]
    expected: Expected = "right"
    first: Expected | None = None
    examples: Expected = "right or refused"
    measures: tuple[str, ...] = TELLING
    tolerance: float = 1e-2
    fixed: bool = True

    def expects(self, measure: str) -> Expected:
        if measure in SECOND:
            return self.expected
        return self.first or self.expected if measure in FIRST else self.examples


SITUATIONS: list[Situation] = []


def situation(kind: str, name: str, **options: Any) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register the case that a function makes, from a seed of its own."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        def seeded() -> Case:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return make()

        SITUATIONS.append(Situation(name, kind, seeded, **options))
        return make

    return register


def case(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Any,
    *,
    clean: nn.Module | None = None,
    clean_loss: Callable[..., Tensor] | None = None,
    batches: Sequence[tuple[Any, Tensor]] | None = None,
    shares: Sequence[float] | None = None,
    coupled: bool = False,
    examples: list[tuple[Any, Tensor]] | None = None,
    mode: Literal["eval", "train"] = "eval",
    options: dict[str, Any] | None = None,
    order: Sequence[int] | None = None,
    **oracle: Any,
) -> Case:
    """A case whose right numbers are those of `clean` (by default a copy of the model), which gets the model's
    weights, in order, with `clean_loss` (the loss) on `batches` (the data: a pair is one batch). `coupled`: no single
    examples."""
    plain = copy.deepcopy(model if clean is None else clean).double()
    if clean is not None:
        theirs = list(plain.parameters())
        for p, q in zip(theirs if order is None else [theirs[i] for i in order], model.parameters(), strict=True):
            p.data.copy_(q.data)
            p.requires_grad_(q.requires_grad)
    plain.train(mode == "train")
    given = batches if batches is not None else [data] if isinstance(data, tuple) else data
    pairs = double(list(given))
    weighted = by_rows(pairs) if shares is None else [(x, y, s) for (x, y), s in zip(pairs, shares, strict=True)]
    rows = examples or (None if coupled else singles(pairs))
    right = Oracle(plain, clean_loss or loss, weighted, rows, order=order, **oracle)
    return Case(model, loss, data, lambda: [right], mode, options or {})


def nothing() -> list[Oracle]:
    """No number is right."""
    return []


def mlp(inputs: int = 4, hidden: int = 4, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def points(n: int = 12, inputs: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(n, inputs), torch.arange(n) % classes
