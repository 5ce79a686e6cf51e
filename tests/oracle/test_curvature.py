"""GGN and Fisher matrices, the routes to a product, and the check of an operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from sharpness import fisher, ggn, hessian, layers
from sharpness.operators.recorder import ReplayError
from sharpness.operators.replay import Replay

torch.set_num_threads(1)


def dense_jacobian(case) -> np.ndarray:
    """dz/dw [b, c, n] by torch.func.jacrev over all trainable parameters."""
    named = {n: p.detach() for n, p in case.model.named_parameters() if p.requires_grad}
    case.model.eval()
    parts = jacrev(lambda w: functional_call(case.model, w, (case.inputs,)))(named)
    return np.concatenate([parts[n].flatten(2).detach().numpy() for n in named], axis=2)


def softmax(case) -> np.ndarray:
    return case.model(case.inputs).softmax(1).detach().numpy()


NAMES = ("linear softmax", "mlp", "tied", "frozen", "bn eval")


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("name", NAMES)
def test_ggn_and_fisher_of_softmax_equal_dense_sums(make_case, name, memory, batch_size):
    """Wrong under a lost 1/N, a batch's length, or the residual part left in."""
    case = make_case(name)
    jacobian, p = dense_jacobian(case), softmax(case)
    onehot = np.eye(p.shape[1])[case.targets.numpy()]
    curvature = np.einsum("bc,cd->bcd", p, np.eye(p.shape[1])) - p[:, :, None] * p[:, None, :]
    expected = np.einsum("bcn,bcd,bdm->nm", jacobian, curvature, jacobian) / len(p)
    gradients = np.einsum("bcn,bc->bn", jacobian, p - onehot)
    eye, options = np.eye(jacobian.shape[2]), {"memory": memory, "batch_size": batch_size}
    scale = np.abs(expected).max()
    found = ggn(case.model, case.loss, case.data, **options) @ eye
    np.testing.assert_allclose(found, expected, atol=1e-12 * scale)
    found = fisher(case.model, case.loss, case.data, kind="true", **options) @ eye
    np.testing.assert_allclose(found, expected, atol=1e-12 * scale)
    found = fisher(case.model, case.loss, case.data, kind="empirical", **options) @ eye
    np.testing.assert_allclose(found, gradients.T @ gradients / len(p), atol=1e-12 * scale)


def test_squared_error(make_case):
    """For the mean over entries of squared errors the true Fisher is the GGN, 2/(b c) J^T J."""
    case = make_case("regression")
    jacobian = dense_jacobian(case)
    expected = 2 * np.einsum("bcn,bcm->nm", jacobian, jacobian) / jacobian[:, :, 0].size
    eye = np.eye(len(expected))
    np.testing.assert_allclose(ggn(case.model, case.loss, case.data) @ eye, expected, atol=1e-12)
    np.testing.assert_allclose(fisher(case.model, case.loss, case.data) @ eye, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "regression"])
def test_sampled_fisher_averages_to_the_true_one(make_case, name):
    """Targets drawn from another distribution, or the same ones for every seed, would be far off."""
    case = make_case(name)
    true = fisher(case.model, case.loss, case.data)
    v = np.random.default_rng(0).standard_normal(true.shape[0])
    expected = v @ (true @ v)
    draws = np.array([v @ (fisher(case.model, case.loss, case.data, kind="sampled", seed=s, memory=0) @ v) for s in range(120)])
    assert abs(draws.mean() - expected) < 4 * draws.std() / 120**0.5
    assert draws.std() > 0


def test_sampled_fisher_is_one_matrix(make_case):
    """Fresh targets at each product would make the operator a different one each time."""
    case = make_case("mlp")
    for memory in (0, 2**30):
        op = fisher(case.model, case.loss, case.data, kind="sampled", seed=3, memory=memory, batch_size=4)
        assert op.check().passed
        np.testing.assert_array_equal(op @ np.ones(op.shape[0]), op @ np.ones(op.shape[0]))


def _counts(z: Tensor, t: Tensor) -> Tensor:
    return nn.functional.poisson_nll_loss(z[:, 0], t)


def _wide(z: Tensor, t: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z.double(), t.long())


@pytest.mark.parametrize(("last", "loss", "targets"), [
    (nn.Sigmoid(), nn.BCELoss(), torch.rand(6, 3)), (nn.Identity(), _counts, torch.arange(6)),
    (nn.Identity(), _wide, torch.arange(6, dtype=torch.int32) % 3),
])
def test_losses_of_no_known_likelihood_have_a_ggn(last, loss, targets):
    """Looking for the likelihood fails on outputs that a loss refuses, counts that are no classes, and other precisions."""
    model = nn.Sequential(nn.Linear(2, 3), last)
    data, v = (torch.randn(6, 2), targets), np.random.default_rng(0).standard_normal(9)
    for op in (ggn(model, loss, data), fisher(model, loss, data, kind="empirical")):
        assert v @ (op @ v) > 0


def test_hessian_is_ggn_plus_residual_part(make_case):
    """They agree for a linear model, and differ for another."""
    for name, same in (("linear softmax", True), ("mlp", False)):
        case = make_case(name)
        a, b = (make(case.model, case.loss, case.data) for make in (hessian, ggn))
        v = np.ones(a.shape[0])
        assert np.allclose(a @ v, b @ v, rtol=1e-10) == same


class Recurrent(nn.Module):
    """An LSTM keeps its weights in a second list, which functional calls do not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1])


class Reads(nn.Module):
    """Control flow that depends on an activation's value."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return z.tanh() if z.mean().item() > -1e9 else z


class Writes(nn.Module):
    """In-place operations on activations."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        buffer = torch.zeros_like(z)
        buffer[:, :2] = z[:, :2].tanh()
        buffer[:, 2:].add_(z[:, 2:] ** 2)
        return self.out(torch.nn.functional.relu(buffer.mul_(1.5), inplace=True))


ROUTES = (("graph", 1000), ("replay", 0))


@pytest.fixture(params=ROUTES, ids=[name for name, _ in ROUTES])
def route(request, monkeypatch):
    """Record at once, or never."""
    monkeypatch.setattr("sharpness.operators.routes._GRAPH_PRODUCTS", request.param[1])
    return request.param[0]


@pytest.mark.parametrize("make", [hessian, ggn, lambda *a, **k: fisher(*a, kind="empirical", **k)])
@pytest.mark.parametrize("model", [Recurrent, Reads, Writes])
def test_awkward_models_by_every_route(make_case, model, make, route):
    """Whatever torch.func makes of them, recorded products equal those of double backward."""
    torch.manual_seed(0)
    case, net = make_case("mlp"), model().double()
    kept = make(net, case.loss, case.data)
    rebuilt = make(net, case.loss, case.data, memory=0)
    for seed in range(3):
        v = np.random.default_rng(seed).standard_normal(kept.shape[0])
        reference = rebuilt @ v
        assert np.linalg.norm(reference) > 1e-3
        np.testing.assert_allclose(kept @ v, reference, rtol=1e-8, atol=1e-10)
    assert rebuilt.route == "rebuilt" and kept.route in ("replay", "graph")
    assert rebuilt.retained_bytes == 0


def test_common_layers_by_every_route(make_case, route):
    """Falling back to the graph unnoticed would only cost time, on every net."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2),
                        nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 3)).double()
    data, loss = (x, make_case("mlp").targets[:6]), nn.CrossEntropyLoss(label_smoothing=0.1)
    for make in (hessian, ggn):
        op, reference = make(net, loss, data, batch_size=4), make(net, loss, data, memory=0)
        eye = np.eye(op.shape[0])[:, ::7]
        np.testing.assert_allclose(op @ eye, reference @ eye, atol=1e-10)
        assert op.route == route


@pytest.mark.parametrize("name", ["mlp", "regression", "tied", "frozen", "bn eval", "bn train"])
def test_recorded_products_equal_the_dense_hessian(make_case, name, monkeypatch):
    monkeypatch.setattr("sharpness.operators.routes._GRAPH_PRODUCTS", 2)
    case = make_case(name)
    dense = case.dense_hessian()
    for batch_size in (None,) if case.mode == "train" else (None, 5):
        op = hessian(case.model, case.loss, case.data, mode=case.mode, batch_size=batch_size)
        np.testing.assert_allclose(op @ np.eye(len(dense)), dense, rtol=0, atol=1e-12 * np.abs(dense).max())


def test_recording_starts_after_thirty_products(make_case):
    case = make_case("mlp")
    op = hessian(case.model, case.loss, case.data)
    v = np.ones(op.shape[0])
    products = np.array([op @ v for _ in range(33)])
    assert op.route == "replay"
    np.testing.assert_allclose(products, products[:1].repeat(33, 0), rtol=1e-10, atol=1e-14)


def test_the_gradient_is_offered_as_a_start(make_case):
    """It saves products; counted as one, or moving with the weights, it would spoil the certificate."""
    case = make_case("mlp")
    op = hessian(case.model, case.loss, case.data, batch_size=4)
    start = op.starting_vector()
    case.loss(case.model(case.inputs), case.targets).backward()
    expected = np.concatenate([p.grad.numpy().ravel() for p in case.model.parameters()])
    np.testing.assert_allclose(start, expected, rtol=1e-9, atol=1e-12)
    assert op.matvecs == 0
    assert ggn(case.model, case.loss, case.data).starting_vector() is None


def test_a_replay_refuses_what_it_cannot_replay():
    """A value baked into the recording would be the first vector's for ever."""
    v = [torch.ones(3)]
    constant = torch.zeros(3)
    for function in (lambda v: [v[0] * v[0].sum().item()],
                     lambda v: [constant.add_(v[0])],
                     lambda v: [v[0] + constant, constant.add_(1.0)][:1]):
        with pytest.raises(ReplayError):
            Replay(function, v)


def test_a_replay_with_writes_and_views():
    """Writes through views of what depends on v are replayed in order, and leave the vector alone."""

    def function(v: list[Tensor]) -> list[Tensor]:
        z = v[0] * 2
        view = z[1:]
        view.mul_(3)
        return [z, torch.ones(2)]

    replay, w = Replay(function, [torch.ones(3)]), torch.tensor([1.0, 2.0, 3.0])
    for _ in range(2):
        assert replay([w])[0].tolist() == [2.0, 12.0, 18.0] and replay([w])[1].tolist() == [1.0, 1.0]
    assert w.tolist() == [1.0, 2.0, 3.0]


def test_memory_bounds_what_is_kept(make_case):
    case = make_case("mlp")
    v = np.ones(hessian(case.model, case.loss, case.data).shape[0])
    reference = case.dense_hessian() @ v
    for memory, route in ((2**30, "graph"), (100, "rebuilt"), (0, "rebuilt")):
        op = hessian(case.model, case.loss, case.data, batch_size=4, memory=memory)
        np.testing.assert_allclose(op @ v, reference, atol=1e-12)
        np.testing.assert_allclose(op @ v, reference, atol=1e-12)
        assert op.route == route and op.retained_bytes <= memory


def test_data_parallel_copies(make_case):
    """Batches shared out among copies of the model: the same matrix, and the model untouched."""
    case = make_case("bn eval")
    dense = case.dense_hessian()
    for memory in (0, 2**30):
        op = hessian(case.model, case.loss, case.data, batch_size=3, devices=["cpu", "cpu"], memory=memory)
        np.testing.assert_allclose(op @ np.eye(len(dense)), dense, atol=1e-12)
    with pytest.raises(ValueError, match="devices is"):
        hessian(case.model, case.loss, case.data, devices="cpu")


def test_chunks_only_where_examples_stand_apart():
    """A loss over pairs of examples has another Hessian in chunks: the batch must stay whole."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 2000), nn.Tanh(), nn.Linear(2000, 2)).double()
    x, y = torch.randn(5000, 4, dtype=torch.float64), torch.zeros(5000)

    def contrastive(z: Tensor, _: Tensor) -> Tensor:
        return (z.mean(0) ** 2).sum()

    params = ["2.bias"]
    whole = hessian(net, contrastive, [(x, y)], params=params) @ np.eye(2)
    np.testing.assert_allclose(hessian(net, contrastive, (x, y), params=params) @ np.eye(2), whole, atol=1e-12)
    op = hessian(net, lambda z, _: (z**2).mean(), (x, y), params=params)
    assert op._problem.batches > 1  # here it does split
    np.testing.assert_allclose(op @ np.eye(2), np.eye(2), atol=1e-12)


class Restless:
    """Data with fresh noise of its own at each pass."""

    def __init__(self, data):
        self.data, self.rng = data, torch.Generator().manual_seed(0)

    def __iter__(self):
        x, y = self.data
        yield x + torch.randn(x.shape, generator=self.rng, dtype=x.dtype), y


def test_check_finds_what_is_not_deterministic(make_case):
    """It must pass shuffled data and stay away from batch-norm statistics."""
    from torch.utils.data import DataLoader, TensorDataset

    case = make_case("bn train")
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(*case.data), batch_size=13, shuffle=True, generator=generator)
    before = {n: b.clone() for n, b in case.model.named_buffers()}
    check = hessian(case.model, case.loss, loader, mode="train").check()
    assert check.passed and check.status == "ok", check
    assert all(torch.equal(b, before[n]) for n, b in case.model.named_buffers())
    case = make_case("mlp")
    for memory in (0, 2**30):
        check = hessian(case.model, case.loss, Restless(case.data), memory=memory).check()
        assert check.passed, check  # data that draw anew are kept as they were drawn first
    draws = iter(1 + 0.1 * np.random.default_rng(0).standard_normal(1000))
    case.model.register_forward_hook(lambda _, __, z: z * next(draws))
    with pytest.raises(ValueError, match=r"is off by|are off by|not symmetric"):
        hessian(case.model, case.loss, case.data).check()


def test_layers_cover_every_parameter_once(make_case):
    """Their diagonal blocks are blocks of the whole Hessian."""
    case = make_case("tied")
    groups = layers(case.model)
    assert [name for names in groups.values() for name in names] == [n for n, _ in case.model.named_parameters()]
    dense, at = case.dense_hessian(), 0
    for names in groups.values():
        op = hessian(case.model, case.loss, case.data, params=names)
        size = op.shape[0]
        block = dense[at : at + size, at : at + size]
        np.testing.assert_allclose(op @ np.eye(size), block, atol=1e-12)
        at += size


def test_refusals(make_case):
    case = make_case("mlp")
    with pytest.raises(ValueError, match="kind is 'other'"):
        fisher(case.model, case.loss, case.data, kind="other")
    with pytest.raises(ValueError, match="unknown to the true Fisher"):
        fisher(case.model, nn.CrossEntropyLoss(label_smoothing=0.1), case.data)
    with pytest.raises(ValueError, match="couples the examples"):
        fisher(make_case("bn train").model, case.loss, make_case("bn train").data, mode="train")

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = case.model

        def forward(self, x):
            return self.inner(x), x

    with pytest.raises(ValueError, match="one tensor with the batch first"):
        ggn(Two(), lambda z, t: case.loss(z[0], t), case.data)
