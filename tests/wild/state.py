"""Hooks, state that a forward pass moves, and writes in place: the number is that of the function as it trains, and the
model leaves as it came."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from wild.situation import ALL, FIRST, SECOND, Case, case, mlp, nothing, points, situation

KIND = "hooks and state"


class Net(nn.Module):
    """Two layers, and what subclasses do with them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@situation(KIND, "parameter hook that freezes rows", expected="right or refused", measures=ALL)
def _() -> Case:
    net = Net()
    net.a.weight.register_hook(lambda g: g * torch.tensor([[0.0], [1], [1], [0]]).to(g))
    return case(net, F.cross_entropy, points(), clean=Net())


@situation(KIND, "parameter hook that scales", expected="right or refused")
def _() -> Case:
    net = Net()
    net.a.weight.register_hook(lambda g: 2 * g)
    return case(net, F.cross_entropy, points(), clean=Net())


@situation(KIND, "parameter hook that records")
def _() -> Case:
    net = Net()
    net.seen = []  # pyright: ignore
    net.a.weight.register_hook(lambda g: net.seen.append(float(g.norm())))  # pyright: ignore
    return case(net, F.cross_entropy, points(), clean=Net())


@situation(KIND, "optimiser in a hook after accumulation")
def _() -> Case:
    net = Net()

    def step(p: Tensor) -> None:
        p.data.sub_(0.1 * p.grad)  # pyright: ignore
        p.grad = None

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    return case(net, F.cross_entropy, points(), clean=Net())


@situation(KIND, "hook on an activation that scales its gradient", expected="refused", first="right or refused",
           measures=("product", "eigenvalues", "trace"))
def _() -> Case:
    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            if h.requires_grad:
                h.register_hook(lambda g: g / 2)
            return self.b(h)

    return case(Scaled(), F.cross_entropy, points(), clean=Net())


@situation(KIND, "module backward hook that scales", expected="right or refused")
def _() -> Case:
    net = Net()
    net.b.register_full_backward_hook(lambda m, given, out: tuple(g if g is None else 3 * g for g in given))
    return case(net, F.cross_entropy, points(), clean=Net())


@situation(KIND, "module backward hook that records", expected="right or refused")
def _() -> Case:
    net = Net()
    net.seen = []  # pyright: ignore
    net.b.register_full_backward_hook(lambda m, given, out: net.seen.append(float(out[0].norm())))  # pyright: ignore
    return case(net, F.cross_entropy, points(), clean=Net())


@situation(KIND, "backward pre-hook that clips", expected="right or refused")
def _() -> Case:
    net = Net()
    net.b.register_full_backward_pre_hook(lambda m, out: tuple(g.clamp(-0.01, 0.01) for g in out))
    return case(net, F.cross_entropy, points(), clean=Net())


@situation(KIND, "forward hook that changes the output")
def _() -> Case:
    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(torch.sin(self.a(x))))

    net = Net()
    net.a.register_forward_hook(lambda m, given, out: torch.sin(out))
    return case(net, F.cross_entropy, points(), clean=Plain())


@situation(KIND, "forward pre-hook that changes the input")
def _() -> Case:
    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    net = Net()
    net.a.register_forward_pre_hook(lambda m, given: (2 * given[0],))
    return case(net, F.cross_entropy, points(), clean=Plain())


@situation(KIND, "forward hook that records activations", measures=ALL)
def _() -> Case:
    net = Net()
    net.seen = []  # pyright: ignore
    net.a.register_forward_hook(lambda m, given, out: net.seen.append(out))  # pyright: ignore
    return case(net, F.cross_entropy, points(), clean=Net())


class Renormed(nn.Module):
    """What Embedding(max_norm) computes: long rows are shortened, by a factor that no gradient goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(12, 4), nn.Linear(4, 3)

    def forward(self, i: Tensor) -> Tensor:
        w = self.e.weight
        return self.o(torch.tanh(F.embedding(i, w * (0.5 / (w.detach().norm(dim=1, keepdim=True) + 1e-7)).clamp(max=1))).mean(1))


class MaxNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(12, 4, max_norm=0.5), nn.Linear(4, 3)

    def forward(self, i: Tensor) -> Tensor:
        return self.o(torch.tanh(self.e(i)).mean(1))


@situation(KIND, "embedding with max_norm, rows short enough", expected="right or refused",
           measures=("product", "eigenvalues", "slice", "perturbation", "sam"))
def _() -> Case:
    net = MaxNorm()
    net.e.weight.data.mul_(0.4 / net.e.weight.data.norm(dim=1, keepdim=True))
    return case(net, F.cross_entropy, (torch.randint(12, (12, 5)), points()[1]), clean=Renormed())


@situation(
    KIND, "embedding with max_norm, rows too long", expected="right or refused", measures=("product", "slice", "ggn", "noise")
)
def _() -> Case:
    """Right: at the weights that the first forward pass would leave, as in training."""
    net, plain = MaxNorm(), Renormed()
    made = case(net, F.cross_entropy, (torch.randint(12, (12, 5)), points()[1]), clean=plain)
    (right,) = made.oracles() if made.oracles else ()
    w = right.model.e.weight.data
    w.mul_((0.5 / w.norm(dim=1, keepdim=True)).clamp(max=1))
    return made


@situation(KIND, "prototypes normalised in place in forward", expected="right or refused", measures=("product", "sam", "slice"))
def _() -> Case:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.p = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.p.weight.copy_(F.normalize(self.p.weight, dim=1))
            return self.p(torch.tanh(self.a(x)))

    class Plain(Prototypes):
        def forward(self, x: Tensor) -> Tensor:
            w = self.p.weight
            return torch.tanh(self.a(x)) @ (w / w.detach().norm(dim=1, keepdim=True)).T

    net = Prototypes()
    net.p.weight.data = F.normalize(net.p.weight.data, dim=1)
    return case(net, F.cross_entropy, points(), clean=Plain())


@situation(KIND, "weights clipped in place in forward", expected="right or refused", measures=("product", "eigenvalues", "slice"))
def _() -> Case:
    class Clipped(Net):
        def forward(self, x: Tensor) -> Tensor:
            for p in self.parameters():
                p.data.clamp_(-0.4, 0.4)
            return super().forward(x)

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            a, b = ({n: p.clamp(-0.4, 0.4) for n, p in m.named_parameters()} for m in (self.a, self.b))
            return F.linear(torch.tanh(F.linear(x, a["weight"], a["bias"])), b["weight"], b["bias"])

    net = Clipped()
    for p in net.parameters():
        p.data.clamp_(-0.39, 0.39)
    return case(net, F.cross_entropy, points(), clean=Plain())


@situation(KIND, "pruned layer", measures=ALL)
def _() -> Case:
    class Plain(nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
            self.mask = mask.double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(F.linear(x, self.a.weight * self.mask.to(x), self.a.bias)))

    net = Net()
    prune.l1_unstructured(net.a, "weight", 0.5)
    plain = Plain(net.a.weight_mask)  # pyright: ignore
    order = [net.a.weight_orig, net.a.bias, net.b.weight, net.b.bias]  # pyright: ignore
    return _renamed(net, plain, order)


class Divided(nn.Module):
    """A weight divided by its norm in the frozen directions u, v: what spectral norm computes in eval mode."""

    def __init__(self, u: Tensor, v: Tensor) -> None:
        super().__init__()
        self.a, self.b, self.u, self.v = nn.Linear(4, 4), nn.Linear(4, 3), u.double(), v.double()

    def forward(self, x: Tensor) -> Tensor:
        w = self.a.weight
        return self.b(torch.tanh(F.linear(x, w / (self.u.to(w) @ w @ self.v.to(w)), self.a.bias)))


@situation(KIND, "old spectral norm in eval mode")
def _() -> Case:
    net = Net()
    spectral_norm(net.a)
    net(torch.randn(3, 4))
    plain = Divided(net.a.weight_u, net.a.weight_v)  # pyright: ignore
    order = [net.a.weight_orig, net.a.bias, net.b.weight, net.b.bias]  # pyright: ignore
    return _renamed(net, plain, order)


@situation(KIND, "new spectral norm in eval mode")
def _() -> Case:
    net = Net()
    parametrizations.spectral_norm(net.a)
    net(torch.randn(3, 4))
    inner = net.a.parametrizations.weight  # pyright: ignore
    plain = Divided(inner[0]._u, inner[0]._v)
    return _renamed(net, plain, [inner.original, net.a.bias, net.b.weight, net.b.bias])


class Spectral(Net):
    """A weight divided by its largest singular value, with all derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.a.weight
        return self.b(torch.tanh(F.linear(x, w / torch.linalg.matrix_norm(w, 2), self.a.bias)))


@situation(
    KIND, "new spectral norm in train mode, converged", expected="right or refused", measures=("product", "eigenvalues", "sam")
)
def _() -> Case:
    """Power iteration follows the weights, but no derivative goes through it: the curvature of the norm is missing."""
    net = Net()
    parametrizations.spectral_norm(net.a, n_power_iterations=30)
    net.train()(torch.randn(3, 4))
    inner = net.a.parametrizations.weight  # pyright: ignore
    return _renamed(net, Spectral(), [inner.original, net.a.bias, net.b.weight, net.b.bias], mode="train")


@situation(
    KIND, "old spectral norm in train mode, converged", expected="right or refused", measures=("product", "eigenvalues", "sam")
)
def _() -> Case:
    net = Net()
    spectral_norm(net.a, n_power_iterations=30)
    net.train()(torch.randn(3, 4))
    order = [net.a.weight_orig, net.a.bias, net.b.weight, net.b.bias]  # pyright: ignore
    return _renamed(net, Spectral(), order, mode="train")


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias, self.g, self.v, self.b = (
            nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4, 1)), nn.Parameter(torch.zeros(4, 4)), nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        w = self.v * (self.g / self.v.norm(dim=1, keepdim=True))
        return self.b(torch.tanh(F.linear(x, w, self.bias)))


@situation(KIND, "old weight norm")
def _() -> Case:
    net = Net()
    weight_norm(net.a)
    return case(net, F.cross_entropy, points(), clean=WeightNormed())


@situation(KIND, "new weight norm")
def _() -> Case:
    net = Net()
    parametrizations.weight_norm(net.a)
    return case(net, F.cross_entropy, points(), clean=WeightNormed())


@situation(KIND, "orthogonal weights", expected="right or refused", measures=("product", "sam", "slice"))
def _() -> Case:
    net = Net()
    parametrizations.orthogonal(net.a, orthogonal_map="cayley")
    return case(net, F.cross_entropy, points())


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.o, self.state = nn.GRUCell(4, 3), nn.Linear(3, 3), 0.5 * torch.ones(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x, self.state.to(x))
        self.state = h.detach()
        return self.o(h)


class Fresh(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.cell(x, 0.5 * torch.ones(len(x), 3).to(x)))


@situation(
    KIND, "hidden state in an attribute", measures=(*SECOND, *FIRST, "ggn", "fisher", "noise"), examples="right or refused"
)
def _() -> Case:
    return case(Stateful(), F.cross_entropy, [points()], clean=Fresh(), coupled=True)


@situation(
    KIND, "hidden state with its history", expected="right or refused", measures=("product", "eigenvalues", "sam", "slice")
)
def _() -> Case:
    """Truncated backpropagation that forgot to cut: the state holds the graph of the pass before."""

    class Attached(Stateful):
        def forward(self, x: Tensor) -> Tensor:
            self.state = self.cell(x, self.state.to(x))
            return self.o(self.state)

    return case(Attached(), F.cross_entropy, [points()], clean=Fresh(), coupled=True)


@situation(KIND, "state written in place", measures=("product", "eigenvalues", "sam", "slice"))
def _() -> Case:
    class InPlace(Stateful):
        def forward(self, x: Tensor) -> Tensor:
            h = self.cell(x, self.state.to(x).clone())
            self.state.copy_(h.detach())
            return self.o(h)

    return case(InPlace(), F.cross_entropy, [points()], clean=Fresh(), coupled=True)


@situation(KIND, "leaky membrane in a list of tensors", measures=("product", "sam", "slice"))
def _() -> Case:
    class Leaky(Net):
        def __init__(self) -> None:
            super().__init__()
            self.membranes = [torch.zeros(12, 4)]

        def forward(self, x: Tensor) -> Tensor:
            u = 0.9 * self.membranes[0].to(x) + self.a(x)
            self.membranes[0] = u.detach()
            return self.b(torch.tanh(u))

    return case(Leaky(), F.cross_entropy, [points()], clean=Net(), coupled=True)


@situation(KIND, "key-value cache that grows", measures=("product", "sam", "slice"))
def _() -> Case:
    class Cached(Net):
        def __init__(self) -> None:
            super().__init__()
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            self.cache["h"] = torch.cat([self.cache["h"], h.detach()]) if "h" in self.cache else h.detach()
            return self.b(h * self.cache["h"].sum(0).numel() / 4 * len(h) / len(self.cache["h"]))

    return case(Cached(), F.cross_entropy, [points()], clean=Net(), coupled=True)


@situation(KIND, "counter that changes the function", measures=("product", "eigenvalues", "sam", "slice"))
def _() -> Case:
    """A temperature that anneals with the number of calls: right at the call that comes next."""

    class Annealed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.step = 1

        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x) / self.step
            self.step += 1
            return z

    return case(Annealed(), F.cross_entropy, [points()], clean=Net(), coupled=True)


@situation(KIND, "counter in a buffer", measures=("product", "sam", "slice"))
def _() -> Case:
    class Annealed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("step", torch.ones(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x) / self.step.clone()
            self.step += 1
            return z

    return case(Annealed(), F.cross_entropy, [points()], clean=Net(), coupled=True)


@situation(KIND, "counter in another object", expected="right or refused", measures=("product", "sam", "slice"))
def _() -> Case:
    class Schedule:
        step = 1

    class Annealed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Schedule()

        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x) / self.schedule.step
            self.schedule.step += 1
            return z

    return case(Annealed(), F.cross_entropy, [points()], clean=Net(), coupled=True)


@situation(KIND, "records of several types", measures=("product", "noise", "slice"))
def _() -> Case:
    class Recorder(Net):
        def __init__(self) -> None:
            super().__init__()
            self.log, self.last, self.calls, self.counts = [], deque(maxlen=3), Counter(), np.zeros(2)
            self.sizes: set[int] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(len(x))
            self.last.append(x.mean())
            self.calls["forward"] += 1
            self.counts += 1
            self.sizes.add(len(x))
            self.device_seen = str(x.device)
            return super().forward(x)

    return case(Recorder(), F.cross_entropy, points(), clean=Net())


@situation(KIND, "weights kept in a cache from the first call", expected="right or refused", measures=("product", "sam", "slice"))
def _() -> Case:
    """A product of weights computed once: after a step it is that of other weights."""

    class Memo(Net):
        def __init__(self) -> None:
            super().__init__()
            self.cached: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.cached is None:
                self.cached = self.b.weight @ self.a.weight
            return F.linear(x, self.cached, self.b.bias) + self.b(torch.tanh(self.a(x)))

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.b.weight @ self.a.weight, self.b.bias) + self.b(torch.tanh(self.a(x)))

    return case(Memo(), F.cross_entropy, points(), clean=Plain())


class LoRA(nn.Linear):
    """Merges its adapters into its weight in eval mode."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight.requires_grad_(False)
        self.down, self.up, self.merged = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2)), False

    def train(self, mode: bool = True) -> LoRA:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if self.merged else 1) * (self.up.data @ self.down.data)
            self.merged = not self.merged
        return self

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z if self.merged else z + x @ self.down.T @ self.up.T


class Unmerged(LoRA):
    def train(self, mode: bool = True) -> Unmerged:
        return self


def adapted(layer: type[LoRA]) -> nn.Module:
    return nn.Sequential(layer(), nn.Tanh(), nn.Linear(4, 3))


@situation(KIND, "adapter that eval() merges into its weight", measures=("product", "sam", "slice"))
def _() -> Case:
    return case(adapted(LoRA), F.cross_entropy, points(), clean=adapted(Unmerged), mode="train")


@situation(KIND, "adapter merged into its weight, in eval mode", expected="right or refused", measures=("product", "sam"))
def _() -> Case:
    """Merged, the adapters' own parameters have no gradient: there is no number but that of the unmerged model."""

    return case(adapted(LoRA), F.cross_entropy, points(), clean=adapted(Unmerged))


@situation(KIND, "forward that writes into its input", measures=("product", "sam", "slice", "noise"))
def _() -> Case:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            x -= 1
            return super().forward(x.mul_(2))

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * (x - 1))

    return case(Writes(), F.cross_entropy, points(), clean=Plain())


@situation(KIND, "loss that writes into the targets", expected="right or refused", measures=("product", "sam", "slice"))
def _() -> Case:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        t += 1
        return F.cross_entropy(z, t % 3)

    return case(mlp(), loss, points(), clean_loss=lambda z, t: F.cross_entropy(z, (t + 1) % 3))


@situation(KIND, "loss with running statistics", measures=("product", "eigenvalues", "sam", "slice"))
def _() -> Case:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("center", torch.ones(3))

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            value = F.cross_entropy(z * self.center.to(z), t)
            self.center = 0.5 * self.center + 0.5 * z.detach().mean(0)
            return value

    return case(mlp(), Centred(), [points()], clean_loss=F.cross_entropy, coupled=True)


@situation(KIND, "loss that counts", measures=("product", "sam"))
def _() -> Case:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.history = 0, []

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            self.calls += 1
            self.history.append(z.detach())
            return F.cross_entropy(z, t)

    return case(mlp(), Counting(), points(), clean_loss=F.cross_entropy)


@situation(KIND, "loss with parameters of its own", measures=("product", "sam", "slice", "ggn"))
def _() -> Case:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.7))

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return F.cross_entropy(self.scale.to(z) * z, t)

    return case(mlp(), Tempered(), points(), clean_loss=lambda z, t: F.cross_entropy(torch.tensor(1.7).to(z) * z, t))


@situation(
    KIND,
    "generator in an attribute, noise in forward",
    expected="right or refused",
    measures=("product", "eigenvalues", "sam", "slice"),
)
def _() -> Case:
    class Noisy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn(x.shape, generator=self.generator))

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))

    return case(Noisy(), F.cross_entropy, [points()], clean=Plain(), coupled=True)


@situation(KIND, "numpy's and Python's randomness in forward", expected="right or refused", measures=("product", "sam", "slice"))
def _() -> Case:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + np.random.rand()) + random.random()

    made = case(Noisy(), F.cross_entropy, [points()], clean=Net())
    return Case(made.model, made.loss, made.data, None)


@situation(KIND, "dropout in train mode", measures=("product", "sam", "slice"))
def _() -> Case:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3))
    return Case(net, F.cross_entropy, points(), None, "train")


@situation(KIND, "scripted model", expected="right or refused", first="right or refused")
def _() -> Case:
    return case(torch.jit.script(mlp()), F.cross_entropy, points(), clean=mlp())  # pyright: ignore


@situation(KIND, "scripted model with dropout, in train mode before", expected="right or refused", first="right or refused")
def _() -> Case:
    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Linear(4, 3))

    return case(torch.jit.script(made()).train(), F.cross_entropy, points(), clean=made())  # pyright: ignore


@situation(KIND, "traced model", expected="right or refused", first="right or refused")
def _() -> Case:
    return case(torch.jit.trace(mlp(), torch.randn(12, 4)), F.cross_entropy, points(), clean=mlp())  # pyright: ignore


@situation(
    KIND,
    "lazy layer that has no weights yet",
    expected="refused",
    examples="refused",
    measures=("product", "eigenvalues", "sam", "ggn", "noise"),
)
def _() -> Case:
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 3))
    return Case(net, F.cross_entropy, points(), nothing)


@situation(KIND, "DataParallel around the model")
def _() -> Case:
    net = mlp()
    return case(nn.DataParallel(net), F.cross_entropy, points(), clean=mlp())


@situation(KIND, "averaged model (exponential moving average)", expected="right or refused")
def _() -> Case:
    net = torch.optim.swa_utils.AveragedModel(mlp())
    net.requires_grad_(True)
    return case(net, F.cross_entropy, points(), clean=mlp())


@situation(KIND, "batch norm without running statistics", examples="right or refused")
def _() -> Case:
    """Batch statistics in eval mode too: the examples depend on each other, and a pair is one batch."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh(), nn.Linear(4, 3))
    return case(net, F.cross_entropy, points(), coupled=True)


@situation(KIND, "batch norm in train mode, cumulative average", measures=("product", "eigenvalues", "sam", "slice", "noise"))
def _() -> Case:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None), nn.Tanh(), nn.Linear(4, 3))
    return case(net, F.cross_entropy, points(), mode="train", coupled=True)


@situation(KIND, "tied weights", measures=("product", "eigenvalues", "slice", "noise"))
def _() -> Case:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.o.weight = self.e.weight

        def forward(self, i: Tensor) -> Tensor:
            return self.o(torch.tanh(self.e(i)).mean(1))

    net = Tied()
    plain = Tied()
    return case(net, F.cross_entropy, (torch.randint(5, (12, 3)), torch.arange(12) % 5), clean=plain)


@situation(KIND, "module used twice", measures=("product", "eigenvalues", "slice", "noise"))
def _() -> Case:
    layer = nn.Linear(4, 4)
    return case(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3)), F.cross_entropy, points())


@situation(KIND, "frozen layer", measures=("product", "sam", "slice"))
def _() -> Case:
    net = mlp()
    net[0].requires_grad_(False)
    return case(net, F.cross_entropy, points())


@situation(KIND, "gradients that were there before", measures=("product", "sam"))
def _() -> Case:
    net = mlp()
    F.cross_entropy(net(points()[0]), points()[1]).backward()
    return case(net, F.cross_entropy, points(), clean=mlp())


@situation(KIND, "attributes that cannot be copied", measures=("product", "sam", "slice"))
def _() -> Case:
    class Holds(Net):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.stream = threading.Lock(), (i for i in range(3))
            self.optimizer, self.owner = torch.optim.SGD(self.parameters(), lr=0.1), [self]

        def forward(self, x: Tensor) -> Tensor:
            with self.lock:
                return super().forward(x)

    return case(Holds(), F.cross_entropy, points(), clean=Net())


@situation(KIND, "forward replaced on the instance", measures=("product", "noise"))
def _() -> Case:
    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net = Net()
    old = net.forward
    net.forward = lambda x: 2 * old(x)
    return case(net, F.cross_entropy, points(), clean=Plain())


@situation(KIND, "train() that keeps batch norm in eval mode", measures=("product", "sam"))
def _() -> Case:
    class Kept(nn.Sequential):
        def train(self, mode: bool = True) -> Kept:
            super().train(mode)
            for m in self.modules():
                if isinstance(m, nn.BatchNorm1d):
                    m.training = False
            return self

    def made(kind: Any) -> nn.Module:
        return kind(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))

    return case(made(Kept), F.cross_entropy, points(), clean=made(Kept), mode="train")


@situation(KIND, "recurrent layer that flattens its weights in forward", measures=("product", "sam", "slice"))
def _() -> Case:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.o = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.r.flatten_parameters()
            return self.o(self.r(x)[0][:, -1])

    return case(Recurrent(), F.cross_entropy, (torch.randn(9, 4, 3), torch.arange(9) % 3))


def _renamed(net: nn.Module, plain: nn.Module, order: list[Any], mode: Any = "eval") -> Case:
    """A case of a network whose parameters a normalisation has renamed and so reordered: `order` names them as they
    come in `plain`."""
    place = {id(p): i for i, p in enumerate(order)}
    positions = [place[id(p)] for p in net.parameters()]
    return case(net, F.cross_entropy, points(), clean=plain, mode=mode, order=positions)
