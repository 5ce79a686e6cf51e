"""Scale-aware quantities against closed forms, dense Hessians and Dinh's rescaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import Failing, state

from sharpness import hessian, top_eigenvalues
from sharpness.flatness.scale_aware import fisher_rao_norm, norm_scaled, relative_trace
from sharpness.gradients import per_example

CE = nn.CrossEntropyLoss()


def softmax_rows(case):
    w = case.model.weight.detach().numpy()
    z = case.inputs.numpy() @ w.T
    full = z + case.model.bias.detach().numpy()
    p = np.exp(full - full.max(axis=1, keepdims=True))
    return full, p / p.sum(axis=1, keepdims=True)


def test_softmax_regression(make_case):
    """z = W x + b is linear in w, so J w = z: slopes are (p - e_y) . z, and the model's is Var_p(z)."""
    case = make_case("linear softmax")
    z, p = softmax_rows(case)
    slopes = (p * z).sum(axis=1) - z[np.arange(13), case.targets.numpy()]
    variances = (p * (z - (p * z).sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    for labels, squares in (("data", slopes**2), ("model", variances)):
        for batch_size in (None, 1, 5):
            found = fisher_rao_norm(case.model, case.loss, case.data, labels=labels, batch_size=batch_size)
            assert found.squared == pytest.approx(squares.mean(), rel=1e-12)
            assert found.value == pytest.approx(np.sqrt(squares.mean()), rel=1e-12)
            assert found.squared_error == pytest.approx(squares.std(ddof=1) / np.sqrt(13), rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "tied", "frozen", "named, though frozen", "bn eval"])
def test_against_all_labels_by_backward(make_case, name):
    """sum_y p_y <w, grad l(x, y)>^2 by one gradient for each label, and the data's label alone."""
    case = make_case(name)
    named = dict(case.model.named_parameters())
    names = case.params or [k for k, q in named.items() if q.requires_grad]
    flags = {k: q.requires_grad for k, q in named.items()}
    case.model.eval()
    data, model = [], []
    for q in (named[k] for k in names):
        q.requires_grad_(True)
    for x, t in zip(case.inputs, case.targets, strict=True):
        p = case.model(x[None]).detach().softmax(dim=1)[0]
        slopes = []
        for y in range(3):
            grads = torch.autograd.grad(CE(case.model(x[None]), torch.tensor([y])), [named[k] for k in names])
            slopes.append(sum((g * named[k].detach()).sum().item() for g, k in zip(grads, names, strict=True)))
        data.append(slopes[int(t)] ** 2)
        model.append(float(p.numpy() @ np.array(slopes) ** 2))
    for k, q in named.items():
        q.requires_grad_(flags[k])
    for labels, squares in (("data", data), ("model", model)):
        found = fisher_rao_norm(case.model, case.loss, case.data, labels=labels, params=case.params, batch_size=4)
        assert found.squared == pytest.approx(np.mean(squares), rel=1e-10)


def relu_net(bias, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 8, bias=bias), nn.ReLU(), nn.Linear(8, 7, bias=bias), nn.ReLU(), nn.Linear(7, 3, bias=bias)]
    return nn.Sequential(*layers).double()


def some_data(n=40):
    torch.manual_seed(1)
    return torch.randn(n, 5).double(), torch.randint(0, 3, (n,))


def test_homogeneous_identity():
    """Three bias-free layers: <w, grad f> = 3 f, so that ||w||_fr^2 = 9 E <dl/df, f>^2 (Liang, thm 3.1)."""
    model, data = relu_net(bias=False), some_data()
    with torch.no_grad():
        f = model(data[0])
        slope = (f.softmax(dim=1) - nn.functional.one_hot(data[1], 3)).mul(f).sum(dim=1)
    assert fisher_rao_norm(model, CE, data).squared == pytest.approx(9 * slope.square().mean().item(), rel=1e-12)


def rescaled(model, factor):
    """Dinh et al. 2017: the first layer times factor, the next divided by it; the function is the same."""
    other = relu_net(model[0].bias is not None)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for p in other[0].parameters():
            p.mul_(factor)
        other[2].weight.div_(factor)
    return other


@pytest.mark.parametrize("factor", [0.1, 20.0])
def test_rescaling_of_layers_changes_nothing_but_the_raw_curvature(factor):
    model, data = relu_net(bias=True), some_data()
    other = rescaled(model, factor)
    for scale in ("element", "filter", "tensor"):
        a, b = (relative_trace(m, CE, data, scale=scale, probes=4) for m in (model, other))
        assert a.value == pytest.approx(b.value, rel=1e-5)
        assert a.by_parameter == pytest.approx(b.by_parameter, rel=1e-5)
    for labels in ("data", "model"):
        a, b = (fisher_rao_norm(m, CE, data, labels=labels).value for m in (model, other))
        assert a == pytest.approx(b, rel=1e-5)
    raw, moved = (top_eigenvalues(hessian(m, CE, data)) for m in (model, other))
    assert moved.value > 1.5 * raw.value
    scaled = [norm_scaled(e, m).values[0] for e, m in ((raw, model), (moved, other))]
    assert scaled[1] > 1.5 * scaled[0]


@pytest.mark.parametrize("name", ["mlp", "tied", "named, though frozen", "bn eval"])
def test_relative_trace_against_the_dense_hessian(make_case, name):
    case = make_case(name)
    named = dict(case.model.named_parameters())
    names = case.params or list(named)
    w = torch.cat([named[k].detach().reshape(-1) for k in names]).numpy()
    h = make_case(name).dense_hessian()
    true = np.sum(w**2 * np.diag(h))
    found = relative_trace(case.model, case.loss, case.data, params=case.params, probes=200)
    assert abs(found.value - true) < 4 * found.standard_error
    scaled = np.outer(w, w) * h
    expected = np.sqrt(2 * (np.sum(scaled**2) - np.sum(np.diag(scaled) ** 2)) / 200)
    assert found.standard_error == pytest.approx(expected, rel=0.3)
    assert sum(found.by_parameter.values()) == pytest.approx(found.value)
    other = relative_trace(case.model, case.loss, case.data, params=case.params, probes=200, seed=1, batch_size=5)
    assert abs(found.value - other.value) < 4 * np.hypot(found.standard_error, other.standard_error)


def test_group_scales(make_case):
    """||w_g||^2 tr(H_g) / n_g summed over filters or tensors."""
    case, h = make_case("mlp"), np.diag(make_case("mlp").dense_hessian())
    ends, sums = 0, {"filter": 0.0, "tensor": 0.0}
    for p in case.model.parameters():
        w, d = p.detach().numpy(), h[ends : ends + p.numel()].reshape(p.shape)
        ends += p.numel()
        sums["tensor"] += np.mean(w**2) * d.sum()
        rows = zip(np.atleast_1d(w), np.atleast_1d(d), strict=True)
        sums["filter"] += sum(np.mean(a**2) * np.sum(b) for a, b in rows)
    for scale, true in sums.items():
        found = relative_trace(case.model, case.loss, case.data, scale=scale, probes=200)
        assert abs(found.value - true) < 4 * found.standard_error


def test_mean_rise_under_relative_noise_is_half_the_trace():
    """A quadratic: E f(w + rho |w| z) - f(w) = rho^2 / 2 tr(H diag(w^2)), by its own route."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 4)), rng.standard_normal((30, 1))
    model = nn.Linear(4, 1, bias=False).double()
    w = model.weight.detach().numpy()[0]
    data = torch.from_numpy(x), torch.from_numpy(y)
    trace = relative_trace(model, nn.MSELoss(), data, probes=400)
    moves = w + 0.1 * w * rng.standard_normal((20000, 4))
    rises = np.mean((x @ moves.T - y) ** 2, axis=0) - np.mean((x @ w - y[:, 0]) ** 2)
    assert 0.005 * trace.value == pytest.approx(rises.mean(), abs=4 * rises.std() / 141 + 0.02 * trace.standard_error)


def test_norm_scaled(make_case):
    case = make_case("frozen")
    top = top_eigenvalues(hessian(case.model, case.loss, case.data), 2)
    squared = sum(p.square().sum().item() for p in case.model.parameters() if p.requires_grad)
    found = norm_scaled(top, case.model)
    np.testing.assert_allclose(found.values, top.values * squared)
    np.testing.assert_allclose(found.residuals, top.residuals * squared)
    named = norm_scaled(2.0, case.model, params=["0.weight"])
    assert named.values[0] == pytest.approx(2 * case.model[0].weight.square().sum().item())
    assert norm_scaled([np.nan], case.model).status == "nonfinite"
    with pytest.raises(ValueError, match="names no parameter"):
        norm_scaled(top, case.model, params=["nonsense"])


class Centred(nn.Module):
    """Couples the examples of a batch without being a batch normalisation known by type."""

    def forward(self, x):
        return x - x.mean(dim=0)


def test_refusals(make_case):
    mlp, regression, train = make_case("mlp"), make_case("regression"), make_case("bn train")
    for labels in ("data", "model"):
        with pytest.raises(ValueError, match="do not exist"):
            fisher_rao_norm(train.model, train.loss, train.data, labels=labels, mode="train")
    coupled = nn.Sequential(Centred(), mlp.model)
    for labels, said in (("data", "influence each other"), ("model", "depend on the others")):
        with pytest.raises(ValueError, match=said):
            fisher_rao_norm(coupled, mlp.loss, mlp.data, labels=labels)
    with pytest.raises(ValueError, match="logits"):
        fisher_rao_norm(regression.model, regression.loss, regression.data, labels="model")
    with pytest.raises(ValueError, match="cross-entropy"):
        smooth = nn.CrossEntropyLoss(label_smoothing=0.3)
        fisher_rao_norm(mlp.model, smooth, mlp.data, labels="model")
    with pytest.raises(ValueError, match="'data' or 'model'"):
        fisher_rao_norm(mlp.model, mlp.loss, mlp.data, labels="empirical")
    with pytest.raises(ValueError, match="scale"):
        relative_trace(mlp.model, mlp.loss, mlp.data, scale="layer")
    with pytest.raises(ValueError, match="probes"):
        relative_trace(mlp.model, mlp.loss, mlp.data, probes=1)


def test_overflow_is_reported():
    """Finite loss, but slopes of 1e200 whose squares are not."""
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 1.0]]).double()
    data = torch.full((4, 2), 1e200, dtype=torch.float64), torch.zeros(4, 1).double()
    with np.errstate(all="ignore"):
        found = fisher_rao_norm(model, lambda outputs, _: outputs.mean(), data)
    assert found.status == "nonfinite" and np.isnan(found.value) and np.isnan(found.standard_error)


def test_float32_and_the_slow_route(make_case, monkeypatch):
    model, (x, t) = relu_net(bias=True), some_data()
    exact = fisher_rao_norm(model, CE, (x, t)).value
    assert fisher_rao_norm(model.float(), CE, (x.float(), t)).value == pytest.approx(exact, rel=1e-5)

    def no_map(*_, **__):
        raise RuntimeError("torch cannot map this")

    monkeypatch.setattr(per_example, "vmap", no_map)
    assert fisher_rao_norm(model.double(), CE, (x, t)).value == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("at", [np.inf, 3, 6, 9, 12, 15])
def test_model_untouched(at):
    """Exceptions at any call included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    data = some_data(9)
    model(data[0]).sum().backward()
    model[4].bias.requires_grad_(False)
    model[3].eval()

    before, loss = state(model), Failing(at)
    try:
        fisher_rao_norm(model, loss, data, batch_size=5)
        fisher_rao_norm(model, loss, data, labels="model", batch_size=5)
        relative_trace(model, loss, data, probes=2)
    except KeyboardInterrupt:
        assert at < np.inf
    assert state(model) == before
    assert loss.calls >= min(at, 15)
