"""Models and losses that a curvature product gets wrong quietly, if it is not made for them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sharpness import epsilon_sharpness, fisher, ggn, gradient_noise, hessian
from sharpness.operators.curvature_operator import CurvatureOperator
from sharpness.problem.make_problem import make_problem

torch.set_num_threads(1)
LOSS = nn.CrossEntropyLoss()


def data(n: int = 12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator).double(), torch.randint(0, 3, (n,), generator=generator)


def by_differences(model, loss, pair) -> np.ndarray:
    """The Hessian by central differences of gradients, in float64: no second derivative of torch's."""
    model = copy.deepcopy(model)
    parameters, columns = list(model.parameters()), []
    for p in parameters:
        for i in range(p.numel()):
            sides = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    p.view(-1)[i] += step
                slopes = torch.autograd.grad(loss(model, *pair), parameters)
                sides.append(torch.cat([g.reshape(-1) for g in slopes]))
                with torch.no_grad():
                    p.view(-1)[i] -= step
            columns.append((sides[0] - sides[1]).numpy() / 2e-5)
    return np.array(columns)


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3)).double()


def normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("record_after", [0, 100])
@pytest.mark.parametrize("make", [shared, normed])
def test_shared_modules_and_weight_norm(make, record_after):
    """A module twice in the tree, and a fused operation whose second derivative is wrong."""
    torch.manual_seed(0)
    model, pair = make(), data()
    names = [(name, id(p), type(p)) for name, p in model.named_parameters(remove_duplicate=False)]
    op = CurvatureOperator(make_problem(model, LOSS, pair), record_after=record_after)
    eye = np.eye(op.shape[0])
    found = op @ eye
    np.testing.assert_allclose(found, by_differences(model, lambda m, x, t: LOSS(m(x), t), pair), atol=1e-7)
    gradient_noise(model, LOSS, pair)
    assert [(n, id(p), type(p)) for n, p in model.named_parameters(remove_duplicate=False)] == names
    assert op.check().passed


@pytest.mark.parametrize("memory", [0, 2**30])
def test_a_loss_that_reads_the_weights(memory):
    """Its regulariser is part of the function, in a recording too; a copy elsewhere would not see it."""
    torch.manual_seed(0)
    model, pair = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), data()

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return LOSS(z, t) + 0.05 * sum(p.square().sum() for p in model.parameters())

    plain = hessian(model, LOSS, pair) @ np.eye(43)
    op = CurvatureOperator(make_problem(model, loss, pair), record_after=0, memory=memory)
    np.testing.assert_allclose(op @ np.eye(43), plain + 0.1 * np.eye(43), atol=1e-12)
    with pytest.raises(ValueError, match="leave devices None"):
        hessian(model, loss, pair, devices=["cpu", "cpu"])


def test_gradients_of_single_examples_with_a_regulariser():
    torch.manual_seed(0)
    model, pair = nn.Linear(4, 3).double(), data()

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return LOSS(z, t) + 0.5 * sum(p.square().sum() for p in model.parameters())

    found = gradient_noise(model, loss, pair)
    slopes = torch.autograd.grad(loss(model(pair[0]), pair[1]), list(model.parameters()))
    assert found.gradient_squared == pytest.approx(sum(float(g.square().sum()) for g in slopes))


def test_padded_attention_is_one_function():
    """torch's fast path without gradients fills padded places otherwise than the path with them."""
    torch.manual_seed(0)

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            mask = torch.zeros(x.shape[:2], dtype=torch.bool)
            mask[:, -1] = True
            return self.out(self.inner(x, src_key_padding_mask=mask).mean(1))

    problem = make_problem(Padded(), LOSS, (torch.randn(6, 3, 8), torch.randint(0, 3, (6,))))
    with problem.untouched():
        assert problem.mean_loss() == pytest.approx(problem.mean_loss_and_gradient()[0], rel=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_losses_that_are_no_plain_mean_stay_whole():
    """Ignored targets and class weights: chunks weighted by their lengths have another mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 3)).double()
    x, t = data(9000)
    ignored = torch.where(torch.arange(9000) >= 6000, torch.full_like(t, -100), t)
    ordered = t.sort().values
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 10.0]).double())
    for loss, targets in ((LOSS, ignored), (weighted, ordered)):
        problem = make_problem(model, loss, (x, targets))
        assert problem.batches == 1 if loss is weighted else problem.weight == "tokens"  # parts by what counts in them
        v = np.ones(12)
        whole = hessian(model, loss, [(x, targets)], params=["2.bias"]) @ v[:3]
        for memory in (0, 2**30):
            found = hessian(model, loss, (x, targets), params=["2.bias"], memory=memory) @ v[:3]
            np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-12)
    assert make_problem(model, LOSS, (x, t)).batches > 1  # here it does split


def test_a_model_that_writes_into_its_inputs():
    """The data would be others at the second pass, and the caller's after the call."""
    torch.manual_seed(0)
    model, (x, t) = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).double(), data()
    before = x.clone()
    value = epsilon_sharpness(model, LOSS, (x, t), iterations=2).value
    product = hessian(model, LOSS, (x, t), batch_size=5) @ np.ones(15)
    assert torch.equal(x, before)
    assert epsilon_sharpness(model, LOSS, (x.relu(), t), iterations=2).value == pytest.approx(value)
    np.testing.assert_allclose(hessian(model, LOSS, (x.relu(), t)) @ np.ones(15), product, atol=1e-12)


def test_a_buffer_that_forward_reads_and_writes():
    """Every pass is the same function, whichever number it is."""

    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3).double()
            self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            z = self.inner(x) * (1 + 0.1 * self.seen)
            self.seen += 1
            return z

    model, pair = Drifting(), data()
    problem = make_problem(model, LOSS, pair, batch_size=5)
    with problem.untouched():
        assert len({problem.mean_loss() for _ in range(3)}) == 1
    assert hessian(model, LOSS, pair, batch_size=5, memory=0).check().passed
    assert float(model.seen) == 0


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("pair", [False, True])
def test_class_weights_are_seen_across_batches(batch_size, pair):
    """Batches of one class each hide them: their weights cancel, and the mean over batches is another than that of all."""
    x, t = data(12)[0], torch.arange(12) // 4
    loss, model = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 9.0]).double()), normed()
    batches = list(zip(x.split(batch_size), t.split(batch_size), strict=True))
    given, options = ((x, t), {"batch_size": batch_size}) if pair else (batches, {})
    with pytest.raises(ValueError, match="class weights"):
        hessian(model, loss, given, **options)
    hessian(model, LOSS, given, **options)


def test_tokens_are_those_that_the_loss_counts():
    """Padding with another index than -100 would count, and lengths that differ are said to be the matter."""
    x, t = torch.randn(8, 4, 4), torch.randint(1, 3, (8, 4))
    t[5:, 2:] = 0
    model = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0, 0))
    batches = list(zip(x.split(4), t.split(4), strict=True))

    def loss(z, t):
        return nn.functional.cross_entropy(z.transpose(1, 2), t, ignore_index=0)

    with pytest.raises(ValueError, match="it leaves out others"):
        hessian(model, loss, batches, weight="tokens")
    hessian(model, loss, batches, weight=lambda x, t: int((t != 0).sum()))
    with pytest.raises(ValueError, match="pass weight='tokens'"):
        hessian(model, loss, [(x[:1, :2], t[:1, :2]), (x[1:2], t[1:2])])


@pytest.mark.parametrize("weight", [lambda x, t: None, lambda x, t: torch.ones(3), lambda x, t: "3", lambda x, t: x.missing])
def test_shares_that_are_no_numbers(weight):
    with pytest.raises(ValueError, match=r"weight gave|weight fails"):
        hessian(normed(), LOSS, data(), weight=weight)


def test_names_of_parameters_may_come_from_anything_iterable():
    """And what holds no names is refused in a sentence."""
    model = normed()
    every = (name for name, _ in model.named_parameters())
    assert hessian(model, LOSS, data(), params=every).shape == hessian(model, LOSS, data()).shape  # pyright: ignore[reportArgumentType]
    for wrong in (3, list(model.parameters())):
        with pytest.raises(ValueError, match="pass a list of parameter names"):
            hessian(model, LOSS, data(), params=wrong)  # pyright: ignore[reportArgumentType]


def test_errors_of_any_kind_while_measuring_are_one_sentence():
    calls = iter(range(100))

    def late(z, t):
        return LOSS(z, t) if next(calls) < 12 else z.missing

    with pytest.raises(ValueError, match="fails while it is measured"):
        epsilon_sharpness(normed(), late, data(), iterations=30)


class Settling(nn.Module):
    """Makes a buffer, a module and an attribute at its first call, drops another attribute, and freezes a layer in train()."""

    def __init__(self):
        super().__init__()
        self.inner, self.fresh = nn.Linear(4, 3).double(), True
        self.register_buffer("empty", None)

    def train(self, mode=True):
        super().train(mode)
        self.inner.bias.requires_grad_(False)
        return self

    def forward(self, x):
        if hasattr(self, "fresh"):
            del self.fresh
            self.settled, self.act, self.empty = True, nn.Tanh(), x[:1]
            self.register_buffer("scale", x.abs().amax(0), persistent=False)
        return self.inner(self.act(x / self.scale - self.empty))


def test_what_forward_makes_at_its_first_call_is_gone_again():
    """Else every later batch, and every later pass, is another function, and the model comes back with more than it had."""
    model, (x, t) = Settling(), data()
    held = [set(d) for d in (vars(model), model._buffers, model._modules, model._non_persistent_buffers_set)]
    pairs = [(x[:6], t[:6]), (x[6:], t[6:])]
    value = epsilon_sharpness(model, LOSS, pairs, iterations=1).loss
    parts = [LOSS(copy.deepcopy(model)(x), t).item() for x, t in pairs]
    assert value == pytest.approx(sum(parts) / 2)
    assert (hessian(model, LOSS, pairs) @ np.ones(15)).shape == (15,)
    assert held == [set(d) for d in (vars(model), model._buffers, model._modules, model._non_persistent_buffers_set)]


def test_a_buffer_that_two_modules_share():
    """The second reads what the first wrote, in every pass."""

    class Counts(nn.Module):
        def __init__(self, seen, writes):
            super().__init__()
            self.register_buffer("seen", seen)
            self.writes = writes

        def forward(self, x):
            self.seen += self.writes
            return x * self.seen

    seen, pair = torch.ones(1), data()
    model = nn.Sequential(Counts(seen, 1), nn.Linear(4, 3), Counts(seen, 0)).double()
    model[2].seen = model[0].seen
    expected = LOSS(copy.deepcopy(model)(pair[0]), pair[1]).item()
    assert epsilon_sharpness(model, LOSS, pair, iterations=1).loss == pytest.approx(expected)


def test_refused_losses():
    """A sum that a regulariser hides, ignored targets in a Fisher matrix, half of the squared error."""
    model, (x, t) = nn.Linear(4, 3).double(), data()
    with pytest.raises(ValueError, match="summed over examples"):
        hessian(model, lambda z, t: nn.functional.cross_entropy(z, t, reduction="sum") + 3.0, (x, t))
    with pytest.raises(ValueError, match="drop these examples"):
        fisher(model, LOSS, (x, torch.where(t == 1, -100, t))) @ np.ones(15)
    fitted = model(x).detach()
    with pytest.raises(ValueError, match="unknown to the true Fisher"):
        fisher(model, lambda z, t: (z - t).square().mean() / 2, (x, fitted))
    assert ggn(model, nn.MSELoss(), (x, fitted)).shape == (15, 15)


class Once(torch.autograd.Function):
    """A ReLU whose derivative torch may not differentiate again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x > 0)


def test_a_function_without_second_derivative_is_noticed():
    """torch leaves its part out of second derivatives, in silence."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.second(Once.apply(self.first(x)))

    torch.manual_seed(0)
    op = hessian(Net().double(), LOSS, data())
    with pytest.raises(ValueError, match="'Once' in module"):
        op @ np.random.default_rng(0).standard_normal((op.shape[0], 3))
