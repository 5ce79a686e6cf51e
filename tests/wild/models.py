"""Models and batches of today: several inputs, dicts in and out, sequences, graphs, derivatives inside, other precisions."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from wild.oracle import double
from wild.situation import ALL, Case, case, mlp, nothing, points, situation

KIND = "models of today"
INPUTS = {"measures": ("product", "eigenvalues", "sam", "phi", "slice", "ggn", "fisher", "noise")}
EITHER: dict[str, Any] = {"expected": "right or refused", "measures": ("product", "sam", "slice", "ggn", "noise")}


class Masked(nn.Module):
    """forward(x, mask)"""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(x) * mask


def two(model: nn.Module, inputs: Any) -> Any:
    return model(*inputs)


def named(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs)


def with_mask(n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    x, y = points(n)
    return x, torch.rand(n, 1) + 0.5, y


@situation(KIND, "forward(x, mask), a tuple of inputs", **INPUTS)
def _() -> Case:
    x, mask, y = with_mask()
    return case(Masked(), F.cross_entropy, [((x, mask), y)], call=two)


@situation(KIND, "forward(x, mask), a list of inputs", **INPUTS)
def _() -> Case:
    x, mask, y = with_mask()
    return case(Masked(), F.cross_entropy, [([x[:5], mask[:5]], y[:5]), ([x[5:], mask[5:]], y[5:])], call=two)


@situation(KIND, "forward(x, mask), a pair with a tuple of inputs", **EITHER)
def _() -> Case:
    x, mask, y = with_mask()
    return case(Masked(), F.cross_entropy, ((x, mask), y), call=two)


@situation(KIND, "forward(x, mask), a dict of inputs", **INPUTS)
def _() -> Case:
    x, mask, y = with_mask()
    return case(Masked(), F.cross_entropy, [(dict(x=x, mask=mask), y)], call=named)


@situation(KIND, "forward(x, mask=None), given or not", **INPUTS)
def _() -> Case:
    class Optional(Masked):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.net(x) * (2.0 if mask is None else mask)

    return case(Optional(), F.cross_entropy, points())


@situation(KIND, "forward of one tuple", **INPUTS)
def _() -> Case:
    """A tuple that the model takes as it is, as a graph and its features."""

    class Whole(Masked):
        def forward(self, given: Any) -> Tensor:  # pyright: ignore
            x, mask = given
            return self.net(x) * mask

    x, mask, y = with_mask()
    return case(Whole(), F.cross_entropy, [((x, mask), y)])


@situation(KIND, "forward of one dict", **INPUTS)
def _() -> Case:
    class Whole(Masked):
        def forward(self, batch: Any) -> Tensor:  # pyright: ignore
            return self.net(batch["x"]) * batch["mask"]

    x, mask, y = with_mask()
    return case(Whole(), F.cross_entropy, [(dict(x=x, mask=mask), y)])


@situation(KIND, "forward(*inputs)", **EITHER)
def _() -> Case:
    class Star(Masked):
        def forward(self, *inputs: Tensor) -> Tensor:  # pyright: ignore
            x, mask = inputs
            return self.net(x) * mask

    x, mask, y = with_mask()
    return case(Star(), F.cross_entropy, [((x, mask), y)], call=two)


@situation(KIND, "forward(x, scale=1.0) of a tuple that is one input", **EITHER)
def _() -> Case:
    """Two arguments are possible, the tuple is the first: torch's recurrent layers and torchvision's detectors."""

    class Both(Masked):
        def forward(self, pair: Any, scale: float = 1.0) -> Tensor:  # pyright: ignore
            return scale * self.net(pair[0]) * pair[1]

    x, mask, y = with_mask()
    return case(Both(), F.cross_entropy, [((x, mask), y)])


@situation(KIND, "dict with a keyword that forward does not take", **EITHER)
def _() -> Case:
    x, mask, y = with_mask()
    return case(Masked(), F.cross_entropy, [(dict(x=x, mask=mask, identifier=torch.arange(12)), y)],
                call=lambda model, given: model(given["x"], given["mask"]))


@situation(KIND, "None among the inputs", **EITHER)
def _() -> Case:
    class Optional(Masked):
        def forward(self, x: Tensor, mask: Any) -> Tensor:
            return self.net(x) * (2.0 if mask is None else mask)

    x, y = points()
    return case(Optional(), F.cross_entropy, [((x, None), y)], call=two)


@dataclass
class ModelOutput:
    """As transformers return it."""

    logits: Tensor
    loss: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


class Output(OrderedDict[str, Any]):
    """A dict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as missing:
            raise AttributeError(name) from missing


class Encoding(UserDict[str, Any]):
    """A batch as tokenizers return it: a mapping that is no dict."""

    def to(self, device: Any) -> Encoding:
        return self


class Transformer(nn.Module):
    """A very small one that takes and returns what those of Hugging Face do."""

    def __init__(self, output: Any = ModelOutput) -> None:
        super().__init__()
        self.e, self.a, self.o, self.output = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 3), output

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        h = torch.tanh(self.a(self.e(input_ids)))
        m = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        z = self.o((h * m[..., None]).sum(1) / m.sum(1, keepdim=True))
        return self.output(logits=z, loss=None if labels is None else F.cross_entropy(z, labels))


def texts(n: int = 12) -> tuple[dict[str, Tensor], Tensor]:
    mask = torch.ones(n, 5, dtype=torch.int64)
    mask[::2, 3:] = 0
    return dict(input_ids=torch.randint(6, (n, 5)), attention_mask=mask), torch.arange(n) % 3


def of_logits(z: Any, t: Tensor) -> Tensor:
    return F.cross_entropy(z if isinstance(z, Tensor) else z.logits, t)


def logits(z: Any) -> Any:
    return z.logits


@situation(KIND, "Hugging Face: keyword inputs, loss of the logits", **INPUTS)
def _() -> Case:
    batch, y = texts()
    return case(Transformer(), of_logits, [(batch, y)], call=named, outputs=logits)


@situation(KIND, "Hugging Face: an ordered dict as output", **INPUTS)
def _() -> Case:
    batch, y = texts()
    return case(Transformer(Output), of_logits, [(batch, y)], call=named, outputs=logits)


@situation(KIND, "Hugging Face: cross-entropy on an output that is no tensor", **EITHER)
def _() -> Case:
    batch, y = texts()
    return case(Transformer(), F.cross_entropy, [(batch, y)], clean_loss=of_logits, call=named, outputs=logits)


@situation(KIND, "Hugging Face: a batch is a dict with labels", **EITHER)
def _() -> Case:
    batch, y = texts()
    data = [dict(batch, labels=y)]
    return case(Transformer(), of_logits, data, batches=[(batch, y)], call=named, outputs=logits)


@situation(KIND, "Hugging Face: a mapping that is no dict", **EITHER)
def _() -> Case:
    batch, y = texts()
    data = [Encoding(dict(batch, labels=y))]
    return case(Transformer(), of_logits, data, batches=[(batch, y)], call=named, outputs=logits)


@situation(KIND, "Hugging Face: the model's own loss", **EITHER)
def _() -> Case:
    batch, y = texts()
    data = [(dict(batch, labels=y), y)]
    return case(Transformer(), lambda out, t: out.loss, data, batches=[(batch, y)], clean_loss=of_logits, call=named,
                outputs=logits)


@situation(KIND, "3-tuples with weights of examples", **EITHER)
def _() -> Case:
    """loss(outputs, targets, weights)"""
    x, y = points()
    w = torch.rand(12) + 0.5

    def loss(z: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return (w * F.cross_entropy(z, t, reduction="none")).mean()

    def clean(z: Tensor, t: Any) -> Tensor:
        return loss(z, t[:, 0].long(), t[:, 1])

    return case(mlp(), loss, [(x, y, w)], batches=[(x, torch.stack([y.float(), w], 1))], clean_loss=clean)


@situation(KIND, "3-tuples for a loss of two", expected="refused", examples="refused", measures=("product", "sam"))
def _() -> Case:
    x, y = points()
    return Case(mlp(), F.cross_entropy, [(x, y, torch.rand(12))], nothing)


@situation(KIND, "targets as a dict", **EITHER)
def _() -> Case:
    x, y = points()
    box = torch.randn(12, 3)

    def loss(z: Tensor, t: Any) -> Tensor:
        return F.cross_entropy(z, t["labels"]) + F.mse_loss(z, t["boxes"])

    def clean(z: Tensor, t: Tensor) -> Tensor:
        return loss(z, dict(labels=t[:, 0].long(), boxes=t[:, 1:]))

    both = torch.cat([y[:, None].float(), box], 1)
    return case(mlp(), loss, [(x, dict(labels=y, boxes=box))], batches=[(x, both)], clean_loss=clean)


@situation(KIND, "targets as a tuple", **EITHER)
def _() -> Case:
    x, y = points()
    box = torch.randn(12, 3)

    def loss(z: Tensor, t: Any) -> Tensor:
        return F.cross_entropy(z, t[0]) + F.mse_loss(z, t[1])

    def clean(z: Tensor, t: Tensor) -> Tensor:
        return loss(z, (t[:, 0].long(), t[:, 1:]))

    return case(mlp(), loss, [(x, (y, box))], batches=[(x, torch.cat([y[:, None].float(), box], 1))], clean_loss=clean)


@situation(KIND, "no targets (autoencoder)", **EITHER)
def _() -> Case:
    """The loss needs the inputs alone, and the second place of a batch is None."""
    x, _ = points()
    net = mlp(outputs=4)
    return case(net, lambda z, t: z.square().mean(), [(x, None)], batches=[(x, torch.zeros(12))])


@situation(KIND, "targets that are the inputs", measures=("product", "ggn", "fisher", "noise"))
def _() -> Case:
    x, _ = points()
    return case(mlp(outputs=4), F.mse_loss, (x, x))


@situation(KIND, "forward that wants the targets", **EITHER)
def _() -> Case:
    """Teacher forcing, and detectors: model(x, y) returns the loss."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x), y)

    x, y = points()
    return case(Own(), lambda z, t: z, [((x, y), y)], call=two)


@situation(KIND, "model that returns its loss", measures=("product", "eigenvalues", "sam", "slice"))
def _() -> Case:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).square().mean()

    return case(Own(), lambda z, t: z, [points()], coupled=True)


@situation(KIND, "model that returns logits and an auxiliary loss", measures=("product", "eigenvalues", "sam", "slice"))
def _() -> Case:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.net(x)
            return z, z.square().mean()

    return case(Aux(), lambda z, t: F.cross_entropy(z[0], t) + 0.1 * z[1], [points()], coupled=True, outputs=lambda z: z[0])


Named = namedtuple("Named", "logits features")


@situation(KIND, "model that returns a named tuple", measures=("product", "sam", "slice", "noise"))
def _() -> Case:
    class Tuple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Named:
            return Named(self.net(x), x)

    return case(Tuple(), of_logits, points(), outputs=logits)


@situation(KIND, "inputs as a named tuple", **EITHER)
def _() -> Case:
    class Fields(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, given: Named) -> Tensor:
            return self.net(given.logits) * given.features

    x, mask, y = with_mask()
    return case(Fields(), F.cross_entropy, [(Named(x, mask), y)], batches=[((x, mask), y)],
                call=lambda model, given: model(Named(*given)))


@situation(KIND, "inputs as an object of its own (a graph)", **EITHER)
def _() -> Case:
    class Graph:
        def __init__(self, x: Tensor, links: Tensor) -> None:
            self.x, self.links = x, links

        def to(self, device: Any) -> Graph:
            return Graph(self.x.to(device), self.links.to(device))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, g: Graph) -> Tensor:
            return g.links @ self.net(g.x)

    x, y = points()
    links = torch.eye(12) + 0.1
    return case(Net(), F.cross_entropy, [(Graph(x, links), y)], batches=[((x, links), y)], coupled=True,
                call=lambda model, given: model(Graph(*given)))


class PINN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        (first,) = torch.autograd.grad(self.u(x).sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x, create_graph=True)[0]


@situation(KIND, "derivatives inside the model", measures=ALL)
def _() -> Case:
    x = torch.linspace(0, 1, 12)[:, None]
    return case(PINN(), F.mse_loss, (x, torch.sin(3 * x)))


@situation(
    KIND, "derivatives inside, by torch.func", expected="right or refused", measures=("product", "sam", "slice", "ggn", "noise")
)
def _() -> Case:
    class Func(PINN):
        def forward(self, x: Tensor) -> Tensor:
            def u(p: Tensor) -> Tensor:
                return self.u(p[None])[0, 0]

            return torch.func.vmap(torch.func.hessian(u))(x)[:, :, 0]

    x = torch.linspace(0, 1, 12)[:, None]
    return case(Func(), F.mse_loss, (x, torch.sin(3 * x)), clean=PINN())


@situation(KIND, "forces as derivatives of an energy", measures=("product", "sam", "slice"))
def _() -> Case:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x.requires_grad_(True)
            e = self.net(x)
            (f,) = torch.autograd.grad(e.sum(), x, create_graph=True)
            return {"energy": e, "forces": -f}

    def loss(z: Any, t: Tensor) -> Tensor:
        return F.mse_loss(z["forces"], t)

    return case(Energy(), loss, [(torch.randn(12, 4), torch.randn(12, 4))], outputs=lambda z: z["forces"])


class CE(torch.autograd.Function):
    """Twice differentiable, in the old style with ctx in forward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(z, t)
        return F.cross_entropy(z, t)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> Any:
        z, t = ctx.saved_tensors
        return up[0] * (z.softmax(1) - F.one_hot(t, z.shape[1])) / len(t), None


@situation(KIND, "old-style function in the loss", measures=ALL)
def _() -> Case:
    return case(mlp(), CE.apply, points(), clean_loss=F.cross_entropy)


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(8, 4, sparse=sparse, padding_idx=0), nn.Linear(4, 3)

    def forward(self, i: Tensor) -> Tensor:
        return self.o(torch.tanh(self.e(i)).mean(1))


@situation(KIND, "embedding with sparse gradients", expected="right or refused", measures=ALL)
def _() -> Case:
    return case(Words(True), F.cross_entropy, (torch.randint(8, (12, 5)), points()[1]), clean=Words(False))


class GCN(nn.Module):
    def __init__(self, links: Tensor | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        if links is not None:
            self.register_buffer("links", links)

    def forward(self, given: Any) -> Tensor:
        x, links = given if isinstance(given, (tuple, list)) else (given, self.links)
        return torch.sparse.mm(links, self.b(torch.tanh(torch.sparse.mm(links, self.a(x)))))


class Dense(GCN):
    def forward(self, given: Any) -> Tensor:
        x, links = given
        return links @ self.b(torch.tanh(links @ self.a(x)))


def graph(n: int = 12) -> Tensor:
    links = (torch.rand(n, n) < 0.3).float()
    links = ((links + links.T + torch.eye(n)) > 0).float()
    return links / links.sum(1, keepdim=True)


for _name, _sparse, _inside in (
    ("COO among the inputs", lambda a: a.to_sparse(), False),
    ("CSR among the inputs", lambda a: a.to_sparse_csr(), False),
    ("COO in a buffer", lambda a: a.to_sparse(), True),
    ("CSR in a buffer", lambda a: a.to_sparse_csr(), True),
):

    @situation(
        KIND,
        f"sparse adjacency: {_name}",
        expected="right or refused",
        measures=("product", "eigenvalues", "sam", "slice", "ggn", "noise"),
    )
    def _(sparse: Any = _sparse, inside: bool = _inside) -> Case:
        links, (x, y) = graph(), points()
        net = GCN(sparse(links) if inside else None)
        data = [(x if inside else (x, sparse(links)), y)]
        return case(net, F.cross_entropy, data, batches=[((x, links), y)], clean=Dense(), coupled=True)


@situation(KIND, "jagged inputs", **EITHER)
def _() -> Case:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.is_nested:
                x = torch.nested.to_padded_tensor(x, 0.0, (len(x), 6, 4))
            return self.l(x.mean(1))

    rows = [torch.randn(2 + i % 5, 4) for i in range(12)]
    padded = torch.stack([F.pad(r, (0, 0, 0, 6 - len(r))) for r in rows])
    y = points()[1]
    return case(Bag(), F.cross_entropy, [(torch.nested.nested_tensor(rows, layout=torch.jagged), y)], batches=[(padded, y)])


@situation(KIND, "packed sequences", **EITHER)
def _() -> Case:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.o = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self.o(self.r(packed)[1][0])

    lengths = torch.tensor([5, 2, 3, 4, 1, 5])
    x = pad_sequence([torch.randn(int(k), 3) for k in lengths], batch_first=True)
    return case(Packed(), F.cross_entropy, [((x, lengths), torch.arange(6) % 3)], call=two)


@situation(KIND, "list of inputs of various shapes", **EITHER)
def _() -> Case:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.o = nn.Conv2d(1, 3, 2), nn.Linear(3, 3)

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.o(torch.stack([torch.tanh(self.c(i)).mean((1, 2)) for i in images]))

    images, y = [torch.randn(1, 3 + i % 3, 4) for i in range(6)], torch.arange(6) % 3
    one = [([double(image)], y[i : i + 1]) for i, image in enumerate(images)]
    return case(Images(), F.cross_entropy, [(images, y)], examples=one)


def ctc(z: Tensor, t: Tensor) -> Tensor:
    n = len(t)
    return F.ctc_loss(z.log_softmax(-1).transpose(0, 1), t, torch.full((n,), z.shape[1]), torch.full((n,), t.shape[1]))


def ctc_by_hand(z: Tensor, t: Tensor) -> Tensor:
    """The forward algorithm; mean over examples of the loss per label, as torch has it."""
    logp, total = z.log_softmax(-1), []
    for p, labels in zip(logp, t, strict=True):
        path = [0]
        for label in labels.tolist():
            path += [label, 0]
        low = torch.tensor(-1e30).to(z)
        alpha = [p[0, path[0]], p[0, path[1]], *[low] * (len(path) - 2)]
        for step in p[1:]:
            new = []
            for s, symbol in enumerate(path):
                before = [alpha[s], alpha[s - 1] if s else low]
                if s > 1 and symbol and symbol != path[s - 2]:
                    before.append(alpha[s - 2])
                new.append(torch.stack(before).logsumexp(0) + step[symbol])
            alpha = new
        total.append(-torch.stack(alpha[-2:]).logsumexp(0) / len(labels))
    return torch.stack(total).mean()


@situation(
    KIND, "connectionist temporal classification", expected="right or refused", measures=("product", "eigenvalues", "sam", "ggn")
)
def _() -> Case:
    net = nn.Linear(3, 4)
    return case(net, ctc, (torch.randn(4, 6, 3), torch.randint(1, 4, (4, 2))), clean_loss=ctc_by_hand)


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.EmbeddingBag(9, 4), nn.Linear(4, 3)

    def forward(self, i: Tensor) -> Tensor:
        return self.o(torch.tanh(self.e(i)))


class PlainBags(Bags):
    def forward(self, i: Tensor) -> Tensor:
        return self.o(torch.tanh(self.e.weight[i].mean(1)))


@situation(KIND, "EmbeddingBag", **EITHER)
def _() -> Case:
    return case(Bags(), F.cross_entropy, (torch.randint(9, (12, 4)), points()[1]), clean=PlainBags())


class Distances(nn.Module):
    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.l, self.p, self.by_hand = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4)), by_hand

    def forward(self, x: Tensor) -> Tensor:
        h = self.l(x)
        return -(h[:, None] - self.p[None]).norm(dim=2) if self.by_hand else -torch.cdist(h, self.p)


@situation(KIND, "cdist", **EITHER)
def _() -> Case:
    return case(Distances(), F.cross_entropy, points(), clean=Distances(True))


@situation(KIND, "weights on the meta device", expected="refused", examples="refused", measures=("product", "sam", "noise"))
def _() -> Case:
    with torch.device("meta"):
        net = mlp()
    return Case(net, F.cross_entropy, points(), nothing)


@situation(KIND, "one weight on the meta device", expected="refused", examples="refused", measures=("product", "sam", "noise"))
def _() -> Case:
    net = mlp()
    net[0].bias = nn.Parameter(torch.empty(4, device="meta"))
    return Case(net, F.cross_entropy, points(), nothing)


@situation(KIND, "weights made in inference mode", **EITHER)
def _() -> Case:
    with torch.inference_mode():
        net = mlp()
    return case(net, F.cross_entropy, points(), clean=mlp())


@situation(KIND, "inputs made in inference mode", **EITHER)
def _() -> Case:
    with torch.inference_mode():
        x, y = points()
    return case(mlp(), F.cross_entropy, [(x, y)], batches=[(x.clone(), y.clone())])


@situation(KIND, "buffers made in inference mode", **EITHER)
def _() -> Case:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    with torch.inference_mode():
        net[1].running_mean = torch.randn(4)
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    plain[1].running_mean = net[1].running_mean.clone()
    return case(net, F.cross_entropy, points(), clean=plain)


for _dtype in (torch.bfloat16, torch.float16):

    @situation(
        KIND,
        f"{str(_dtype)[6:]} weights",
        expected="right or refused",
        tolerance=0.1,
        measures=("product", "sam", "slice", "noise"),
    )
    def _(dtype: torch.dtype = _dtype) -> Case:
        net, (x, y) = mlp().to(dtype), points()
        return case(net, F.cross_entropy, (x.to(dtype), y), clean=mlp())


@situation(KIND, "one layer in bfloat16", expected="right or refused", tolerance=0.1, measures=("product", "sam"))
def _() -> Case:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.to(self.a.weight.dtype))).to(self.b.weight.dtype))

    return case(Mixed(), F.cross_entropy, points(), clean=Mixed())


@situation(KIND, "autocast inside forward", expected="right or refused", tolerance=0.1, measures=("product", "slice"))
def _() -> Case:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x).float()

    class Plain(Cast):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return case(Cast(), F.cross_entropy, points(), clean=Plain())


class Complex(nn.Module):
    """A complex layer, and the same by its real and imaginary parts."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.o = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh((x.to(self.w.dtype) @ self.w).abs()))


@situation(KIND, "complex weights", expected="refused", first="refused", examples="refused",
           measures=("product", "sam", "slice", "noise"))
def _() -> Case:
    return Case(Complex(), F.cross_entropy, points(), nothing)


@situation(KIND, "8-bit weights beside the others", **EITHER)
def _() -> Case:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Parameter(torch.randint(-9, 9, (4, 4), dtype=torch.int8), requires_grad=False)
            self.b = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(x @ (0.1 * self.q.to(x))))

    net = Quantised()
    return case(net, F.cross_entropy, points())


@situation(
    KIND, "dynamically quantised model", expected="right or refused", first="right or refused", measures=("product", "sam")
)
def _() -> Case:
    net = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8)
    return Case(net, F.cross_entropy, points(), nothing)


@situation(KIND, "attention with padding masks", measures=("product", "eigenvalues", "sam", "slice", "noise"))
def _() -> Case:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.o(self.a(x, x, x, key_padding_mask=padding, need_weights=False)[0].mean(1))

    padding = torch.zeros(6, 4, dtype=torch.bool)
    padding[::2, 2:] = True
    return case(Attends(), F.cross_entropy, [((2 * torch.randn(6, 4, 4), padding), torch.arange(6) % 3)], call=two)


@situation(KIND, "transformer encoder with a padding mask", measures=("product", "sam", "slice"))
def _() -> Case:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, 0.1, batch_first=True), 1)
            self.o = nn.Linear(4, 3)

        def forward(self, x: Tensor, src_key_padding_mask: Tensor) -> Tensor:
            return self.o(self.t(x, src_key_padding_mask=src_key_padding_mask)[:, 0])

    padding = torch.zeros(6, 4, dtype=torch.bool)
    padding[::2, 2:] = True
    inputs = dict(x=2 * torch.randn(6, 4, 4), src_key_padding_mask=padding)
    net = Encoder()
    return case(net, F.cross_entropy, [(inputs, torch.arange(6) % 3)], call=named)


@situation(KIND, "recurrent layers", measures=("product", "eigenvalues", "sam", "slice", "ggn", "noise"))
def _() -> Case:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.o = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.r(x)[0][:, -1])

    return case(Recurrent(), F.cross_entropy, (torch.randn(9, 4, 3), torch.arange(9) % 3))


@situation(KIND, "sequence first, so that the batch is the second dimension", **EITHER)
def _() -> Case:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.o = nn.GRU(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.r(x)[0][-1])

    return case(SequenceFirst(), F.cross_entropy, [(torch.randn(4, 9, 3), torch.arange(9) % 3)], coupled=True)


@situation(KIND, "language model: logits of every token, targets the next one", measures=("product", "eigenvalues", "sam", "ggn"))
def _() -> Case:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Embedding(6, 4), nn.Linear(4, 6)

        def forward(self, i: Tensor) -> Tensor:
            return self.o(torch.tanh(self.e(i).cumsum(1)))

    i = torch.randint(6, (5, 7))
    return case(Language(), lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten()), (i[:, :-1], i[:, 1:]))


@situation(KIND, "loss with learnable centres, beside the model", measures=("product", "sam", "slice"))
def _() -> Case:
    class Centres(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.randn(3, 3))

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return (z - self.c[t].to(z)).square().mean()

    loss = Centres()
    return case(mlp(), loss, points(), clean_loss=lambda z, t: (z - loss.c.detach()[t].to(z)).square().mean())


@situation(KIND, ".item() in forward", measures=("product", "sam", "slice"))
def _() -> Case:
    class Item(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * (2.0 if x.sum().item() > -1e9 else 1.0)

    return case(Item(), F.cross_entropy, points())


@situation(KIND, "control flow that depends on data", measures=("product", "sam", "noise", "ggn"))
def _() -> Case:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            rows = [self.net(row) if row[0] > 0 else torch.sin(self.net(row)) for row in x]
            return torch.stack(rows)

    return case(Flow(), F.cross_entropy, points())


@situation(KIND, "numpy inside forward", expected="right or refused", measures=("product", "sam", "noise", "slice"))
def _() -> Case:
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            scale = torch.from_numpy(x.detach().numpy() ** 2).mean(1, keepdim=True)
            return self.net(x) * scale.to(x)

    return case(Numpy(), F.cross_entropy, points())


@situation(KIND, "mixture of experts, the best two", measures=("product", "sam"))
def _() -> Case:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            values, best = self.gate(x).topk(2, dim=1)
            every = torch.stack([e(x) for e in self.experts], 1)
            return (every.gather(1, best[..., None].expand(-1, -1, 3)) * values.softmax(1)[..., None]).sum(1)

    return case(Experts(), F.cross_entropy, points())


@situation(KIND, "float64 inputs for float32 weights", **EITHER)
def _() -> Case:
    x, y = points()
    return case(mlp(), F.cross_entropy, (x.double(), y))


@situation(KIND, "integer inputs for float32 weights", **EITHER)
def _() -> Case:
    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.to(self.net[0].weight.dtype) / 255)

    return case(Bytes(), F.cross_entropy, (torch.randint(256, (12, 4), dtype=torch.uint8), points()[1]))


BAD: dict[str, Any] = {
    "expected": "refused",
    "first": "refused",
    "examples": "refused",
    "measures": ("product", "sam", "slice", "noise"),
}


@situation(KIND, "wrong: images for a model of rows", **BAD)
def _() -> Case:
    return Case(mlp(), F.cross_entropy, (torch.randn(12, 5), points()[1]), nothing)


@situation(KIND, "wrong: targets of the wrong type", **BAD)
def _() -> Case:
    x, y = points()
    return Case(mlp(), F.cross_entropy, (x, y.float()), nothing)


@situation(KIND, "wrong: class out of range", **BAD)
def _() -> Case:
    x, y = points()
    return Case(mlp(), F.cross_entropy, (x, y + 5), nothing)


@situation(KIND, "wrong: integer inputs", **BAD)
def _() -> Case:
    x, y = points()
    return Case(mlp(), F.cross_entropy, (x.long(), y), nothing)


@situation(KIND, "wrong: targets that broadcast", measures=("product", "ggn"), expected="right or refused")
def _() -> Case:
    """[b, 1] against [b] is a [b, b] table for the mean squared error, which torch only warns about."""
    return case(mlp(outputs=1), F.mse_loss, [(torch.randn(12, 4), torch.randn(12))], coupled=True)
