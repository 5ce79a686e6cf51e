"""Second derivatives that are dropped, wrong, or not of this function; and the same forms where they are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from wild.situation import Case, case, mlp, points, situation

KIND = "second derivatives"
SILENT = {"expected": "refused", "first": "right"}  # first derivatives are right, second ones wrong without a word
NO_GRADIENT = {"expected": "refused", "first": "right or refused", "measures": ("product", "eigenvalues", "trace", "density")}


class FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, scale: float = 1.0) -> Tensor:
        ctx.save_for_backward(scale * (z.softmax(1) - F.one_hot(t, z.shape[1]).to(z)) / len(z))
        return scale * F.cross_entropy(z, t)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        return ctx.saved_tensors[0] * up[0], None, None


class FusedHead(torch.autograd.Function):
    """The last layer and the cross-entropy at once: both gradients are ready when forward ends."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, t: Tensor) -> Tensor:
        z = h @ w.T
        d = (z.softmax(1) - F.one_hot(t, len(w)).to(z)) / len(z)
        ctx.save_for_backward(d @ w, d.T @ h)
        return F.cross_entropy(z, t)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        h, w = ctx.saved_tensors
        return h * up[0], w * up[0], None


class Swish(torch.autograd.Function):
    """Saves its input and the sigmoid of it, computed in forward: the second derivative lacks a term."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        x, s = ctx.saved_tensors
        return up[0] * s * (1 + x * (1 - s))


class Recomputed(torch.autograd.Function):
    """The same in a way that may be differentiated again: all is computed from the saved input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return up[0] * s * (1 + x * (1 - s))


class SavedOutput(torch.autograd.Function):
    """Saves its own output, which torch follows: right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return up[0] * (1 - y * y)


class Attribute(torch.autograd.Function):
    """Keeps a tensor as an attribute of ctx instead of saving it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.y = torch.tanh(x)
        return ctx.y.clone()

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        return up[0] * (1 - ctx.y**2)


class RMSNorm(torch.autograd.Function):
    """Saves 1 / rms, as fused norms do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x, r)
        return x * r

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        x, r = ctx.saved_tensors
        return r * up[0] - x * r**3 * (up[0] * x).mean(-1, keepdim=True)


class FlashAttention(torch.autograd.Function):
    """softmax(q k^T) v with the log of the sum of exponentials saved."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = q @ k.transpose(-1, -2)
        lse = s.logsumexp(-1, keepdim=True)
        o = (s - lse).exp() @ v
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        q, k, v, o, lse = ctx.saved_tensors
        p = (q @ k.transpose(-1, -2) - lse).exp()
        d = p * (up[0] @ v.transpose(-1, -2) - (up[0] * o).sum(-1, keepdim=True))
        return d @ k, d.transpose(-1, -2) @ q, p.transpose(-1, -2) @ up[0]


class HandCheckpoint(torch.autograd.Function):
    """Activation checkpointing as it is written by hand: backward runs the layers again, without a graph of its own."""

    @staticmethod
    def forward(ctx: Any, run: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x, *weights)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_(True)
            found = torch.autograd.grad(ctx.run(again), [again, *weights], up[0])
        return None, *found


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *up: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return up[0] * (1 - torch.tanh(x) ** 2)


class Factor(torch.autograd.Function):
    """The identity, whose backward is a multiple: gradient reversal for -1, a mistake for 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        return ctx.factor * up[0], None


class Clip(torch.autograd.Function):
    """The identity, whose backward clips."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.bound = bound
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        return up[0].clamp(-ctx.bound, ctx.bound), None


class Sign(torch.autograd.Function):
    """Straight through: the step's gradient is that of the identity within [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        return up[0] * (ctx.saved_tensors[0].abs() <= 1)


class Spike(torch.autograd.Function):
    """A spike, with the derivative of a soft one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return up[0] / (1 + 10 * x.abs()) ** 2


class Between(nn.Module):
    """Two layers and something between them."""

    def __init__(self, f: Any, width: int = 4) -> None:
        super().__init__()
        self.a, self.f, self.b = nn.Linear(4, width), f, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.f(self.a(x)))


def between(f: Any, clean: Any = None, loss: Any = F.cross_entropy) -> Case:
    model = Between(f)
    return case(model, loss, points(), clean=None if clean is None else Between(clean))


@situation(KIND, "fused cross-entropy that saves its gradient", **SILENT)
def _() -> Case:
    return case(mlp(), FusedCrossEntropy.apply, points(), clean_loss=F.cross_entropy)


@situation(KIND, "fused last layer and cross-entropy", **SILENT)
def _() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tanh(self.a(x)), self.head.weight

    def clean(z: Any, t: Tensor) -> Tensor:
        return F.cross_entropy(z[0] @ z[1].T, t)

    return case(Model(), lambda z, t: FusedHead.apply(*z, t), points(), clean_loss=clean, outputs=lambda z: z[0])


@situation(KIND, "activation that saves an intermediate", **SILENT)
def _() -> Case:
    return between(Swish.apply, F.silu)


@situation(KIND, "activation that keeps a tensor in ctx", **SILENT)
def _() -> Case:
    return between(Attribute.apply, torch.tanh)


@situation(KIND, "activation that recomputes", examples="right or refused")
def _() -> Case:
    return between(Recomputed.apply, F.silu)


@situation(KIND, "activation that saves its output")
def _() -> Case:
    return between(SavedOutput.apply, torch.tanh)


@situation(KIND, "norm that saves 1 / rms", **SILENT)
def _() -> Case:
    return between(RMSNorm.apply, lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


def _tokens(attention: Any) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(attention(*self.qkv(x).chunk(3, -1)).mean(1))

    return Model()


@situation(KIND, "attention that saves the log-sum-exp", **SILENT)
def _() -> Case:
    data = 2 * torch.randn(6, 3, 4), torch.arange(6) % 3
    plain = _tokens(lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v)
    return case(_tokens(FlashAttention.apply), F.cross_entropy, data, clean=plain)


@situation(KIND, "attention that insists on the flash kernel", expected="right or refused", first="right or refused")
def _() -> Case:
    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]

    data = 2 * torch.randn(6, 3, 4), torch.arange(6) % 3
    plain = _tokens(lambda q, k, v: (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v)
    return case(_tokens(flash), F.cross_entropy, data, clean=plain)


@situation(KIND, "checkpointing written by hand", **SILENT)
def _() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def run(self, x: Tensor) -> Tensor:
            return torch.tanh(self.b(torch.tanh(x)))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(HandCheckpoint.apply(self.run, self.a(x), *self.b.parameters()))

    class Plain(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.run(self.a(x)))

    return case(Model(), F.cross_entropy, points(), clean=Plain())


@situation(KIND, "checkpointing of torch")
def _() -> Case:
    return between(lambda x: checkpoint(torch.tanh, x, use_reentrant=False), torch.tanh)


@situation(KIND, "re-entrant checkpointing of torch", expected="refused", first="right or refused")
def _() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.b, torch.tanh(self.a(x)), use_reentrant=True)  # pyright: ignore[reportReturnType]

    class Plain(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    return case(Model(), F.cross_entropy, points(), clean=Plain())


@situation(KIND, "function that may be differentiated once", **SILENT)
def _() -> Case:
    return between(Once.apply, torch.tanh)


for _share in (1.0, 0.3, 0.1):

    @situation(KIND, f"wrong in a residual branch of weight {_share}", **SILENT)
    def _(share: float = _share) -> Case:
        return between(lambda x: torch.tanh(x) + share * Swish.apply(x), lambda x: torch.tanh(x) + share * F.silu(x))


for _scale in (1e-3, 1e-6, 1e4):

    @situation(KIND, f"fused cross-entropy times {_scale:g}", **SILENT, measures=("product", "eigenvalues", "slice"))
    def _(scale: float = _scale) -> Case:
        return case(mlp(), lambda z, t: FusedCrossEntropy.apply(z, t, scale), points(),
                    clean_loss=lambda z, t: scale * F.cross_entropy(z, t))


@situation(KIND, "fused cross-entropy as a small auxiliary loss", **SILENT)
def _() -> Case:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t) + 0.2 * FusedCrossEntropy.apply(z, (t + 1) % 3)

    def clean(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t) + 0.2 * F.cross_entropy(z, (t + 1) % 3)

    return case(mlp(), loss, points(), clean_loss=clean)


@situation(KIND, "gradient reversal", **NO_GRADIENT)
def _() -> Case:
    return between(lambda x: torch.tanh(Factor.apply(x, -1.0)), torch.tanh)


@situation(KIND, "gradient scaled by a mistake", **NO_GRADIENT)
def _() -> Case:
    return between(lambda x: torch.tanh(Factor.apply(x, 2.0)), torch.tanh)


@situation(KIND, "gradient clipping that clips", **NO_GRADIENT)
def _() -> Case:
    return between(lambda x: torch.tanh(Clip.apply(x, 0.01)), torch.tanh)


@situation(KIND, "gradient clipping out of reach")
def _() -> Case:
    return between(lambda x: torch.tanh(Clip.apply(x, 1e3)), torch.tanh)


@situation(KIND, "straight-through signs", **NO_GRADIENT)
def _() -> Case:
    return between(Sign.apply, lambda x: torch.where(x >= 0, 1.0, -1.0).to(x))


@situation(KIND, "spikes with a surrogate derivative", **NO_GRADIENT)
def _() -> Case:
    return between(Spike.apply, lambda x: (x > 0).to(x))


@situation(KIND, "straight through by detach (vector quantisation)", **NO_GRADIENT)
def _() -> Case:
    return between(lambda x: x + (torch.round(2 * x) / 2 - x).detach(), lambda x: torch.round(2 * x) / 2)


@situation(KIND, "stop-gradient between two branches", **NO_GRADIENT)
def _() -> Case:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(z[:, 0], torch.sin(z[:, 1]).detach()) + z[:, 2].square().mean()

    def clean(z: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(z[:, 0], torch.sin(z[:, 1])) + z[:, 2].square().mean()

    return case(mlp(), loss, points(), clean_loss=clean)


@situation(KIND, "norm whose scale is detached", **NO_GRADIENT)
def _() -> Case:
    return between(lambda x: x / x.norm(dim=1, keepdim=True).detach(), lambda x: x / x.norm(dim=1, keepdim=True))


@situation(KIND, "trunk that is detached while its weights are measured", **NO_GRADIENT)
def _() -> Case:
    return between(lambda x: torch.tanh(x).detach(), torch.tanh)


@situation(KIND, "trunk that is detached, head alone measured")
def _() -> Case:
    model, plain = Between(lambda x: torch.tanh(x).detach()), Between(torch.tanh)
    model.a.requires_grad_(False)
    return case(model, F.cross_entropy, points(), clean=plain)


@situation(KIND, "trunk under no_grad while its weights are measured", **NO_GRADIENT)
def _() -> Case:
    class Model(Between):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = torch.tanh(self.a(x))
            return self.b(h)

    return case(Model(torch.tanh), F.cross_entropy, points(), clean=Between(torch.tanh))


@situation(KIND, "softmax by hand with a detached maximum")
def _() -> Case:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        z = z - z.max(1, keepdim=True).values.detach()
        return (z.exp().sum(1).log() - z.gather(1, t[:, None])[:, 0]).mean()

    return case(mlp(), loss, points(), clean_loss=F.cross_entropy)


@situation(KIND, "implicit layer whose gradient comes from a hook", expected="refused", first="right or refused")
def _() -> Case:
    """A fixed point z = tanh(x + z / 2), found without a graph; a hook solves for the gradient."""

    def solved(x: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(40):
                z = torch.tanh(x + z / 2)
        z = torch.tanh(x + z / 2)
        if z.requires_grad:
            slope = (1 - z.detach() ** 2) / 2
            z.register_hook(lambda g: g / (1 - slope))
        return z

    def unrolled(x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(41):
            z = torch.tanh(x + z / 2)
        return z

    return between(solved, unrolled)


@situation(KIND, "compiled model", expected="right or refused", measures=("product", "sam"))
def _() -> Case:
    net = mlp()
    return case(torch.compile(net, backend="aot_eager"), F.cross_entropy, points(), clean=mlp())  # pyright: ignore


for _name, _layer in {
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "leaky ReLU": nn.LeakyReLU(),
    "GELU": nn.GELU(),
    "hard swish": nn.Hardswish(),
    "max pooling": nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten(), nn.ConstantPad1d((0, 2), 0.5)),
    "layer norm": nn.LayerNorm(4),
    "group norm": nn.GroupNorm(2, 4),
    "instance norm": nn.Sequential(nn.Unflatten(1, (1, 4)), nn.InstanceNorm1d(1), nn.Flatten()),
    "PReLU": nn.PReLU(),
}.items():

    @situation(KIND, f"right by nature: {_name}", measures=("product", "eigenvalues", "sam"))
    def _(layer: nn.Module = _layer) -> Case:
        return between(layer)


@situation(KIND, "right by nature: Fourier transform within")
def _() -> Case:
    return between(lambda x: torch.fft.rfft(x).abs().repeat(1, 2)[:, :4])


@situation(KIND, "right by nature: gradient penalty in the loss")
def _() -> Case:
    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                z = self.net(x)
                (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
            return z, slope.square().sum(1)

    return case(Penalty(), lambda z, t: F.cross_entropy(z[0], t) + 0.1 * z[1].mean(), points(), outputs=lambda z: z[0])


@situation(KIND, "no second derivative at zero", expected="right or refused")
def _() -> Case:
    """A norm at exactly zero: its gradient is 0 for torch, its curvature infinite."""
    model = nn.Sequential(nn.Linear(4, 3))
    nn.init.zeros_(model[0].weight)  # pyright: ignore
    nn.init.zeros_(model[0].bias)  # pyright: ignore
    return case(model, lambda z, t: F.cross_entropy(z, t) + z.norm(dim=1).mean(), points())


class Penalised(nn.Module):
    """Logits, and the sum of the squared norms of all weights, of which the biases are 0 at first."""

    def __init__(self, squared: Any) -> None:
        super().__init__()
        self.net, self.squared = mlp(), squared
        for layer in (self.net[0], self.net[2]):
            nn.init.zeros_(layer.bias)  # pyright: ignore

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), torch.stack([self.squared(p) for p in self.net.parameters()]).sum()


@situation(KIND, "squared norm of weights that are zero", expected="right or refused")
def _() -> Case:
    """norm(w) ** 2 at w = 0: its gradient is right, its second derivative 0 in place of 2."""

    def loss(z: Any, t: Tensor) -> Tensor:
        return F.cross_entropy(z[0], t) + z[1]

    net, plain = Penalised(lambda p: p.norm() ** 2), Penalised(lambda p: p.square().sum())
    return case(net, loss, points(), clean=plain, outputs=lambda z: z[0])


@situation(KIND, "product of features, some of them zero", expected="right or refused")
def _() -> Case:
    class Product(nn.Module):
        def __init__(self, multiplied: Any) -> None:
            super().__init__()
            self.a, self.b, self.multiplied = nn.Linear(4, 4), nn.Linear(5, 3), multiplied

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(torch.cat([h, self.multiplied(h)], 1))

    def one_by_one(h: Tensor) -> Tensor:
        return (h[:, 0] * h[:, 1] * h[:, 2] * h[:, 3])[:, None]

    net = Product(lambda h: h.prod(1, keepdim=True))
    with torch.no_grad():
        net.a.weight[:2].zero_()
        net.a.bias[:2].zero_()
    return case(net, F.cross_entropy, points(), clean=Product(one_by_one))


@situation(KIND, "spatial transformer (grid_sample)", expected="right or refused")
def _() -> Case:
    """Its second derivative does not exist in torch; by hand it is interpolation by products of hat functions."""

    class Transformer(nn.Module):
        def __init__(self, sample: Any) -> None:
            super().__init__()
            self.grid, self.o, self.sample = nn.Parameter(1.2 * torch.rand(1, 3, 3, 2) - 0.6), nn.Linear(9, 3), sample

        def forward(self, x: Tensor) -> Tensor:
            return self.o(torch.tanh(self.sample(x, self.grid.expand(len(x), -1, -1, -1)).flatten(1)))

    def by_torch(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, align_corners=True)

    def by_hand(x: Tensor, grid: Tensor) -> Tensor:
        at = (grid + 1) / 2 * 4
        hats = (1 - (at[..., None] - torch.arange(5).to(x)).abs()).clamp(min=0)  # [b, h, w, 2, 5]
        return torch.einsum("bcyx,bijx,bijy->bcij", x, hats[..., 0, :], hats[..., 1, :])

    net = Transformer(by_torch)
    return case(net, F.cross_entropy, (torch.randn(6, 1, 5, 5), torch.arange(6) % 3), clean=Transformer(by_hand))


@situation(KIND, "parameters that the loss does not use")
def _() -> Case:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.spare, self.scale = mlp(), nn.Linear(3, 2), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return case(Spare(), F.cross_entropy, points())
