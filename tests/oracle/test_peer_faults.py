"""What other tools are known to get wrong, and ours must not.

Where the pinned peer still has the fault the test shows it there: else it would prove nothing.
"""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sharpness import hessian, top_eigenvalues

REASON = "a peer, installed by make test"
curvlinops: Any = pytest.importorskip("curvlinops", reason=REASON)
eigenthings: Any = pytest.importorskip("hessian_eigenthings", reason=REASON)
pyhessian: Any = pytest.importorskip("pyhessian", reason=REASON)
lanczos: Any = pytest.importorskip("hessian_eigenthings.algorithms.lanczos", reason=REASON).lanczos
operators: Any = pytest.importorskip("hessian_eigenthings.operators.base", reason=REASON)
losses: Any = pytest.importorskip("hessian_eigenthings.loss_fns.standard", reason=REASON)

pytestmark = pytest.mark.filterwarnings("ignore:Using backward")  # PyHessian's leak, as torch sees it


class Quadratic(nn.Module):
    """f(w) = w . (d w) / 2, whatever the data: the Hessian is diag(d)."""

    def __init__(self, *diagonal: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(diagonal)))
        self.register_buffer("diagonal", torch.tensor(diagonal))

    def forward(self, x):
        return 0.5 * (self.weight**2).dot(self.diagonal) + 0 * x


def mean(outputs, targets):
    return outputs.mean()


EMPTY = torch.zeros(1, 1), torch.zeros(1)


def single(case):
    """The case in float32, the only precision that PyHessian knows: model and batch."""
    return case.model.float(), (case.inputs.float(), case.targets)


def test_the_model_is_left_in_its_mode_and_without_gradients(make_case):
    """PyHessian leaves eval mode and a `.grad` that holds a graph."""
    model, data = single(make_case("dropout in eval"))
    model.train()
    top_eigenvalues(hessian(model, nn.CrossEntropyLoss(), data))
    assert model.training and all(p.grad is None for p in model.parameters())
    pyhessian.hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
    assert not model.training and any(p.grad is not None for p in model.parameters())


def live_tensors() -> int:
    return sum(issubclass(type(obj), torch.Tensor) for obj in gc.get_objects())


@pytest.mark.parametrize("batch_size", [None, 3])
def test_operators_come_and_go_without_a_trace(make_case, batch_size):
    """A gradient kept in `.grad` holds its graph, and that the parameters: such cycles outlive the model."""

    def measure() -> None:
        case = make_case("mlp")
        op = hessian(case.model, case.loss, case.data, batch_size=batch_size)
        for _ in range(20):
            op @ np.ones(op.shape[0])

    measure()
    gc.collect()
    before = live_tensors()
    for _ in range(5):
        measure()
    gc.collect()
    assert live_tensors() <= before


def test_opposite_eigenvalues():
    """Power iteration on diag(5, -5, 1) settles nowhere: PyHessian gives neither 5 nor -5."""
    model = Quadratic(5.0, -5.0, 1.0)
    op = hessian(model, mean, EMPTY)
    for which, values in {"LA": [5, 1, -5], "SA": [-5, 1, 5]}.items():
        found = top_eigenvalues(op, 3, which=which)
        assert found.converged
        np.testing.assert_allclose(found.values, values, rtol=1e-6)
    np.testing.assert_allclose(sorted(top_eigenvalues(op, 2, which="LM").values), [-5, 5], rtol=1e-6)
    torch.manual_seed(0)
    (value,), _ = pyhessian.hessian(model, mean, data=EMPTY, cuda=False).eigenvalues()
    assert abs(abs(value) - 5) > 1e-2


@pytest.mark.parametrize("scale", [1e-7, 1e-20, 1e20])
def test_eigenvalues_of_any_scale(scale):
    """PyHessian adds 1e-6 to norms: of diag(1e-7, 5e-8, 1e-8) it finds the first value twice."""
    model = Quadratic(scale, scale / 2, scale / 10)
    found = top_eigenvalues(hessian(model, mean, EMPTY), 3)
    assert found.converged
    np.testing.assert_allclose(found.values, [scale, scale / 2, scale / 10], rtol=1e-3)
    if scale == 1e-7:
        torch.manual_seed(0)
        values, _ = pyhessian.hessian(model, mean, data=EMPTY, cuda=False).eigenvalues(top_n=2)
        assert values[1] > 0.9 * scale


def test_a_seed_fixes_the_result_and_the_global_generator_is_not_used(make_case):
    """PyHessian draws from the global generator: each run gives another value."""
    case = make_case("mlp")
    op = hessian(case.model, case.loss, case.data)
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    first = top_eigenvalues(op, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    again = hessian(case.model, case.loss, case.data)  # a recording of the first would round otherwise
    second = top_eigenvalues(again, 2, seed=3)
    assert first.values.tolist() == second.values.tolist() and first.matvecs == second.matvecs
    model, data = single(case)
    theirs = {pyhessian.hessian(model, case.loss, data=data, cuda=False).eigenvalues()[0][0] for _ in range(3)}
    assert len(theirs) == 3


def test_ragged_batches_are_weighted_by_their_length():
    """A last batch of one in 100: hessian-eigenthings gives it half the weight."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    inputs[-1] *= 10
    targets = torch.randint(3, (100,), generator=generator)
    model, loss = nn.Linear(4, 3).double(), nn.CrossEntropyLoss()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=99)
    exact = top_eigenvalues(hessian(model, loss, (inputs, targets)), tol=1e-8).value
    assert top_eigenvalues(hessian(model, loss, loader), tol=1e-8).value == pytest.approx(exact, rel=1e-7)
    theirs = eigenthings.HessianOperator(model, loader, losses.supervised_loss(loss))
    assert lanczos(theirs, k=1, max_iter=15, which="LA", seed=0).eigenvalues[0] > 3 * exact


def matrix_operator(matrix):
    """The same matrix for their Lanczos."""
    tensor = torch.from_numpy(matrix)
    return operators.LambdaOperator(lambda v: tensor @ v, len(matrix), dtype=torch.float64)


def test_one_eigenvalue_gets_as_many_steps_as_it_needs():
    """`lanczos(k=1)` of hessian-eigenthings takes two steps and returns what it has."""
    matrix = np.diag(np.linspace(0, 1, 400) ** 0.5)
    found = top_eigenvalues(matrix, 1)
    assert found.converged and found.value == pytest.approx(1, rel=1e-3)
    assert lanczos(matrix_operator(matrix), k=1, seed=0).eigenvalues[0] < 0.9


@pytest.mark.parametrize("k", [5, 20])
def test_no_ghost_eigenvalues_in_long_runs(k):
    """Without reorthogonalisation found values come back as copies; theirs does without above 50 steps."""
    spectrum = np.concatenate([np.linspace(0, 1, 380), 1.5 ** np.arange(1, 21)])
    found = top_eigenvalues(np.diag(spectrum), k, tol=1e-8)
    assert found.converged
    np.testing.assert_allclose(found.values, spectrum[::-1][:k], rtol=1e-7)
    theirs = lanczos(matrix_operator(np.diag(spectrum)), k=k, max_iter=300, which="LA", seed=0)
    assert bool(theirs.converged.all())
    assert np.max(np.abs(theirs.eigenvalues.numpy() / spectrum[::-1][:k] - 1)) > 0.1


def test_more_than_200_steps_stay_exact():
    """A basis restarted many times must neither copy nor lose a value."""
    spectrum = np.concatenate([np.linspace(0, 1, 795), 1 + 0.001 * np.arange(1, 6)])
    found = top_eigenvalues(np.diag(spectrum), 5, tol=1e-6, max_matvecs=4000)
    assert found.matvecs > 200
    np.testing.assert_allclose(found.values, spectrum[::-1][:5], rtol=1e-5)


def test_a_harmless_shuffle_is_accepted():
    """curvlinops compares the losses of the last batches of two passes: it refuses a loader that shuffles."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=7, shuffle=True)
    exact = top_eigenvalues(hessian(model, loss, (inputs, targets))).value
    assert top_eigenvalues(hessian(model, loss, loader)).value == pytest.approx(exact, rel=1e-3)
    with pytest.raises(RuntimeError, match="deterministic"):
        curvlinops.HessianLinearOperator(model, loss, list(model.parameters()), loader)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_running_statistics_do_not_move(make_case, mode):
    """curvlinops moves them before it refuses train mode; hessian-eigenthings at each product."""
    case = make_case("bn train")
    before = copy.deepcopy(case.model.state_dict())

    def moved() -> bool:
        return any(not torch.equal(t, before[name]) for name, t in case.model.state_dict().items())

    case.model.train(mode == "train")
    found = top_eigenvalues(hessian(case.model, case.loss, case.data, mode=mode), 2)
    assert not moved() and found.converged
    if mode == "train":
        theirs = eigenthings.HessianOperator(case.model, [case.data], losses.supervised_loss(case.loss))
        theirs.matvec(torch.ones(theirs.size, dtype=torch.float64))
        assert moved()
        case.model.load_state_dict(before)
        with pytest.raises(RuntimeError):
            curvlinops.HessianLinearOperator(case.model, case.loss, list(case.model.parameters()), [case.data])
        assert moved()


def test_the_mode_is_reported_with_the_number(make_case):
    case = make_case("bn train")
    assert {hessian(case.model, case.loss, case.data, mode=m).mode for m in ("eval", "train")} == {"eval", "train"}
