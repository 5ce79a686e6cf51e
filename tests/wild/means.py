"""Means that are not plain: masked, weighted, summed, coupled, not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from wild.situation import ALL, Case, case, mlp, nothing, points, situation

KIND = "means that are not plain"
COUPLED = {"measures": ("product", "eigenvalues", "sam", "slice", "ggn", "noise"), "examples": "right or refused"}


def masked(z: Tensor, t: Tensor) -> Tensor:
    """The mean over the labels that there are."""
    known = ~t.isnan()
    return (z - t.nan_to_num())[known].square().mean()


def either(net: nn.Module, loss: Any, data: list[tuple[Tensor, Tensor]], counts: list[int]) -> Case:
    """Right is the mean over all that counts, or that of the batches by their rows."""
    shares = [c / sum(counts) for c in counts]
    by_counts, by_rows = case(net, loss, data, shares=shares, coupled=True), case(net, loss, data, coupled=True)
    assert by_counts.oracles and by_rows.oracles
    oracles = [*by_counts.oracles(), *by_rows.oracles()]
    return Case(net, loss, data, lambda: oracles)


class Wide(nn.Module):
    """Activations of 200 kB per example, so that a pair is computed in chunks where that leaves it the same."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z + 0 * x.mean(1, keepdim=True).expand(-1, 50_000).clone().mean(1, keepdim=True)


LATE = ("product", "sam", "noise")


@situation(KIND, "labels that are NaN, masked by the loss", measures=ALL)
def _() -> Case:
    x, t = torch.randn(12, 4), torch.randn(12, 3)
    t[3:9, :2] = float("nan")
    return case(mlp(), masked, (x, t), coupled=True)


@situation(
    KIND, "labels that are NaN in batches of a list", expected="right or refused", measures=("product", "sam", "slice", "noise")
)
def _() -> Case:
    x, t = torch.randn(12, 4), torch.randn(12, 3)
    t[3:9, :2] = float("nan")
    return either(mlp(), masked, [(x[:4], t[:4]), (x[4:], t[4:])], [int((~part.isnan()).sum()) for part in (t[:4], t[4:])])


@situation(KIND, "labels that are NaN from row 200 on", measures=LATE)
def _() -> Case:
    x, t = torch.randn(230, 4), torch.randn(230, 3)
    t[200:, :2] = float("nan")
    return case(Wide(), masked, (x, t), coupled=True)


def late_class() -> tuple[Tensor, Tensor]:
    x, y = points(230, classes=2)
    y[200:] = 2
    return x + y[:, None], y


@situation(KIND, "class weights", measures=ALL)
def _() -> Case:
    x, y = points(13)
    return case(
        mlp(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 10])), (x, y), clean_loss=weighted([1, 2, 10]), coupled=True
    )


def weighted(weights: list[float]) -> Any:
    return lambda z, t: F.cross_entropy(z, t, weight=torch.tensor(weights).to(z))


@situation(KIND, "class weights, a class that comes at row 200", measures=LATE)
def _() -> Case:
    return case(Wide(), weighted([1, 1, 10]), late_class(), coupled=True)


@situation(KIND, "class weights in batches of a list", expected="right or refused", measures=("product", "sam", "noise"))
def _() -> Case:
    x, y = points(12)
    return case(mlp(), weighted([1, 2, 10]), [(x[:5], y[:5]), (x[5:], y[5:])], coupled=True)


@situation(KIND, "ignored targets", measures=ALL)
def _() -> Case:
    x, y = points()
    y[2:7] = -100
    return case(mlp(), F.cross_entropy, (x, y), coupled=True)


@situation(KIND, "ignored targets from row 200 on", measures=LATE)
def _() -> Case:
    x, y = points(230)
    y[200:] = -100
    return case(Wide(), F.cross_entropy, (x, y), coupled=True)


@situation(KIND, "a class of its own to ignore, from row 200 on", measures=LATE)
def _() -> Case:
    return case(Wide(), nn.CrossEntropyLoss(ignore_index=2), late_class(), coupled=True)


@situation(KIND, "all targets of a batch ignored", expected="refused", examples="refused", measures=ALL)
def _() -> Case:
    x, y = points()
    return Case(mlp(), F.cross_entropy, [(x, y), (x, torch.full_like(y, -100))], nothing)


@situation(KIND, "all targets of the first batch ignored", expected="refused", examples="refused", measures=("product", "sam"))
def _() -> Case:
    x, y = points()
    return Case(mlp(), F.cross_entropy, [(x, torch.full_like(y, -100)), (x, y)], nothing)


class Tagger(nn.Module):
    """Logits [b, classes, tokens]."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, i: Tensor) -> Tensor:
        return self.o(torch.tanh(self.e(i))).transpose(1, 2)


def ragged() -> list[tuple[Tensor, Tensor]]:
    found = []
    for width, kept in ((5, 5), (8, 3), (3, 1)):
        y = torch.randint(3, (4, width))
        y[:, kept:] = -100
        y[0, kept - 1] = -100 if kept > 1 else y[0, 0]
        found.append((torch.randint(7, (4, width)), y))
    return found


@situation(KIND, "token means over ragged batches", expected="right or refused", measures=("product", "sam", "noise"))
def _() -> Case:
    data = ragged()
    return either(Tagger(), F.cross_entropy, data, [int((y >= 0).sum()) for _, y in data])


@situation(
    KIND, 'token means over ragged batches, weight="tokens"', measures=("product", "eigenvalues", "trace", "sam", "slice", "ggn")
)
def _() -> Case:
    data = ragged()
    counts = [int((y >= 0).sum()) for _, y in data]
    shares = [c / sum(counts) for c in counts]
    return case(Tagger(), F.cross_entropy, data, shares=shares, coupled=True, options={"weight": "tokens"})


@situation(KIND, "weight by a function", measures=("product", "eigenvalues", "sam", "slice", "ggn"))
def _() -> Case:
    x, y = points()
    return case(mlp(), F.cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])], shares=[0.25, 0.75], coupled=True,
                options={"weight": lambda inputs, targets: 1.0 if len(targets) == 4 else 3.0})


@situation(KIND, 'weight="tokens", a batch without any', measures=("product", "sam", "slice"), expected="right or refused")
def _() -> Case:
    data = ragged()
    data.append((data[0][0], torch.full_like(data[0][1], -100)))
    counts = [int((y >= 0).sum()) for _, y in data[:-1]]
    shares = [c / sum(counts) for c in counts]
    return case(Tagger(), F.cross_entropy, data, batches=data[:-1], shares=shares, coupled=True, options={"weight": "tokens"})


@situation(KIND, "labels smoothed", measures=("product", "ggn", "fisher", "empirical", "noise"))
def _() -> Case:
    return case(mlp(), nn.CrossEntropyLoss(label_smoothing=0.1), points())


@situation(KIND, "targets as probabilities", measures=("product", "ggn", "fisher", "empirical", "noise"))
def _() -> Case:
    return case(mlp(), F.cross_entropy, (torch.randn(12, 4), torch.randn(12, 3).softmax(1)))


SUMMED = {"expected": "refused", "examples": "refused", "measures": ("product", "sam", "slice", "noise")}


class Pair(nn.Module):
    """Returns logits and something else."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.net, self.names = mlp(), names

    def forward(self, x: Tensor) -> Any:
        z = self.net(x)
        return dict(zip(self.names, (z, x), strict=True)) if self.names else (z, x)


@situation(KIND, "sum over examples", **SUMMED)
def _() -> Case:
    return Case(mlp(), nn.CrossEntropyLoss(reduction="sum"), points(), nothing)


@situation(KIND, "sum over examples on a tuple of outputs", **SUMMED)
def _() -> Case:
    return Case(Pair(), lambda z, t: F.cross_entropy(z[0], t, reduction="sum"), points(), nothing)


@situation(KIND, "sum over examples on a dict of outputs", **SUMMED)
def _() -> Case:
    return Case(Pair(("logits", "hidden")), lambda z, t: F.cross_entropy(z["logits"], t, reduction="sum"), points(), nothing)


@situation(KIND, "sum over examples, a constant added", **SUMMED)
def _() -> Case:
    return Case(mlp(), lambda z, t: 5.0 + F.cross_entropy(z, t, reduction="sum"), points(), nothing)


@situation(KIND, "sum over examples of squared errors that are zero", **SUMMED)
def _() -> Case:
    net, x = mlp(), torch.randn(12, 4)
    return Case(net, nn.MSELoss(reduction="sum"), (x, net(x).detach()), nothing)


@situation(KIND, "mean over the batch, sum over outputs", measures=("product", "sam", "ggn", "noise"))
def _() -> Case:
    return case(mlp(), lambda z, t: (z - t).square().sum(1).mean(), (torch.randn(12, 4), torch.randn(12, 3)))


class Contrast(nn.Module):
    """Made for one batch size, which it asserts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.others = size, ~torch.eye(size, dtype=torch.bool)

    def forward(self, z: Tensor, _: Tensor) -> Tensor:
        assert len(z) == self.size, f"made for {self.size} rows, got {len(z)}"
        z = F.normalize(z, dim=1)
        s = (z @ z.T / 0.5).masked_fill(~self.others, float("-inf"))
        return F.cross_entropy(s, (torch.arange(self.size) + self.size // 2) % self.size)


@situation(KIND, "contrastive loss made for one batch size, one batch", **COUPLED)
def _() -> Case:
    return case(mlp(), Contrast(12), [points()], coupled=True)


@situation(KIND, "contrastive loss made for one batch size, a pair", **COUPLED)
def _() -> Case:
    return case(mlp(), Contrast(12), points(), coupled=True)


@situation(KIND, "contrastive loss made for one batch size, in chunks if it let us", measures=LATE)
def _() -> Case:
    return case(Wide(), Contrast(230), points(230), coupled=True)


@situation(KIND, "normalisation over the batch in the loss", **COUPLED)
def _() -> Case:
    return case(mlp(), lambda z, t: F.cross_entropy((z - z.mean(0)) / z.std(0), t), points(), coupled=True)


@situation(KIND, "correlation over the batch", **COUPLED)
def _() -> Case:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        a, b = z[:, 0] - z[:, 0].mean(), t - t.mean()
        return 1 - (a @ b) / (a.norm() * b.norm())

    return case(mlp(), loss, (torch.randn(12, 4), torch.randn(12)), coupled=True)


@situation(KIND, "redundancy over the batch, late rows alike", measures=LATE)
def _() -> Case:
    """Barlow twins: the cross-correlation of the batch."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        z = (z - z.mean(0)) / (z.std(0) + 1e-3)
        return (z.T @ z / len(z) - torch.eye(3).to(z)).square().sum() + 0 * t.sum()

    return case(Wide(), loss, points(230), coupled=True)


@situation(KIND, "dice", **COUPLED)
def _() -> Case:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        p = z.sigmoid()
        return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)

    return case(mlp(), loss, (torch.randn(12, 4), (torch.rand(12, 3) < 0.3).float()), coupled=True)


@situation(KIND, "pairs of a ranking loss", **COUPLED)
def _() -> Case:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        score, above = z[:, 0], t[:, None] > t[None, :]
        return F.softplus(score[None, :] - score[:, None])[above].mean()

    return case(mlp(), loss, points(), coupled=True)


class GCN(nn.Module):
    def __init__(self, links: Tensor, wide: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.wide = nn.Linear(4, 4), nn.Linear(4, 3), wide
        self.register_buffer("links", links)

    def forward(self, x: Tensor) -> Tensor:
        if self.wide:
            x = x + 0 * x.mean(1, keepdim=True).expand(-1, 50_000).clone().mean(1, keepdim=True)
        return self.links @ self.b(torch.tanh(self.links @ self.a(x)))


def graph(n: int) -> Tensor:
    links = (torch.rand(n, n) < 0.2).float()
    links = ((links + links.T + torch.eye(n)) > 0).float()
    return links / links.sum(1, keepdim=True)


@situation(KIND, "transductive graph as a pair", **COUPLED)
def _() -> Case:
    return case(GCN(graph(12)), F.cross_entropy, points(), coupled=True)


@situation(KIND, "transductive graph as a pair, large", measures=LATE)
def _() -> Case:
    return case(GCN(graph(230), True), F.cross_entropy, points(230), coupled=True)


@situation(KIND, "transductive graph as one batch", **COUPLED)
def _() -> Case:
    return case(GCN(graph(12)), F.cross_entropy, [points()], coupled=True)


@situation(KIND, "edges only between late examples", measures=LATE)
def _() -> Case:
    """The first rows are as if alone: a look at them sees no coupling."""

    class Late(Wide):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return torch.cat([z[:100], z[100:] + z[100:].mean(0)]) if len(z) > 100 else z

    return case(Late(), F.cross_entropy, points(230), coupled=True)


@situation(KIND, "model that reads the length of its batch", measures=LATE)
def _() -> Case:
    class Counted(Wide):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if len(x) > 150 else 1.0)

    return case(Counted(), F.cross_entropy, points(230), coupled=True)


ROWS = {"measures": ("product", "sam", "ggn", "noise")}
for _name, _loss, _targets in (
    ("binary cross-entropy with pos_weight",
     lambda z, t: F.binary_cross_entropy_with_logits(z, t, pos_weight=7 * torch.ones_like(z[0])), "bits"),
    ("multi-label margin, soft", F.multilabel_soft_margin_loss, "bits"),
    ("Huber", F.huber_loss, "reals"),
    ("smooth L1", F.smooth_l1_loss, "reals"),
    ("absolute error", F.l1_loss, "reals"),
    ("quantile", lambda z, t: torch.maximum(0.9 * (t - z), -0.1 * (t - z)).mean(), "reals"),
    ("Poisson", F.poisson_nll_loss, "bits"),
    ("Gaussian with a variance of the model's", lambda z, t: F.gaussian_nll_loss(z[:, 0], t[:, 0], F.softplus(z[:, 1])), "reals"),
    ("Kullback-Leibler, batchmean", lambda z, t: F.kl_div(z.log_softmax(1), t.softmax(1), reduction="batchmean"), "reals"),
    ("cosine distance", lambda z, t: 1 - F.cosine_similarity(z, t).mean(), "reals"),
    ("focal", lambda z, t: ((1 - (-F.binary_cross_entropy_with_logits(z, t, reduction="none")).exp()) ** 2
                            * F.binary_cross_entropy_with_logits(z, t, reduction="none")).mean(), "bits"),
    ("multi-class hinge", lambda z, t: F.multi_margin_loss(z, t[:, 0].long()), "bits"),
):

    @situation(
        KIND, f"a plain mean: {_name}", **ROWS, expected="right or refused" if "hinge" in _name else "right", first="right"
    )
    def _(loss: Any = _loss, kind: str = _targets) -> Case:
        x = torch.randn(12, 4)
        return case(mlp(), loss, (x, torch.randn(12, 3) if kind == "reals" else (torch.rand(12, 3) < 0.4).float()))


def bad(value: float, batch: int) -> Case:
    x, y = points(20)
    data = [(x[i : i + 5], y[i : i + 5]) for i in range(0, 20, 5)]
    mark = data[batch][0][2, 1].item()

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z[:, :3], t) + torch.where((z[:, 3:] == mark).any(), value, 0.0)

    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.net(x), x], 1)

    return Case(Shown(), loss, data, nothing)


NOT_FINITE = {"expected": "refused",
              "examples": "refused",
              "measures": ("product", "eigenvalues", "sam", "ascent", "phi", "slice", "noise")}


@situation(KIND, "loss of the third batch is NaN", **NOT_FINITE)
def _() -> Case:
    return bad(float("nan"), 2)


@situation(KIND, "loss of the last batch is infinite", **NOT_FINITE)
def _() -> Case:
    return bad(float("inf"), 3)


@situation(KIND, "an input of the second batch is NaN", **NOT_FINITE)
def _() -> Case:
    x, y = points()
    x[7, 1] = float("nan")
    return Case(mlp(), F.cross_entropy, [(x[:6], y[:6]), (x[6:], y[6:])], nothing)


@situation(KIND, "loss of shape [1]", expected="right or refused", measures=("product", "sam", "noise"))
def _() -> Case:
    return case(mlp(), lambda z, t: F.cross_entropy(z, t).reshape(1), points(), clean_loss=F.cross_entropy)


@situation(KIND, "loss for each example", expected="refused", examples="refused", measures=("product", "sam", "noise"))
def _() -> Case:
    return Case(mlp(), nn.CrossEntropyLoss(reduction="none"), points(), nothing)


@situation(KIND, "loss as a Python number", expected="refused", examples="refused", measures=("product", "sam", "noise"))
def _() -> Case:
    return Case(mlp(), lambda z, t: F.cross_entropy(z, t).item(), points(), nothing)


@situation(KIND, "loss of zero at a fit", measures=("product", "eigenvalues", "ggn"))
def _() -> Case:
    net, x = mlp(), torch.randn(12, 4)
    return case(net, F.mse_loss, (x, net(x).detach()))


@situation(KIND, "loss with a large constant", measures=("product", "eigenvalues", "ggn", "noise"))
def _() -> Case:
    return case(mlp(), lambda z, t: F.cross_entropy(z, t) + 1e4, points())


@situation(KIND, "negative loss", measures=("product", "eigenvalues", "sam"))
def _() -> Case:
    return case(mlp(), lambda z, t: -z.log_softmax(1).exp()[:, 0].mean() + 0 * t.sum(), points())


@situation(KIND, "regulariser that reads the model's weights", measures=("product", "sam", "slice"))
def _() -> Case:
    net, plain = mlp(), mlp().double()

    def penalised(model: nn.Module) -> Any:
        return lambda z, t: F.cross_entropy(z, t) + 0.05 * sum(p.square().sum() for p in model.parameters())

    plain.load_state_dict(net.state_dict())
    made = case(net, penalised(net), points(), clean=plain, coupled=True)
    (right,) = made.oracles() if made.oracles else ()
    object.__setattr__(right, "loss", penalised(right.model))
    return made
