"""Gradients of single examples against a loop over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import MSE, loop

from sharpness.gradients import per_example
from sharpness.gradients.noise import gradient_noise
from sharpness.problem.make_problem import make_problem


def streamed(problem):
    with problem.untouched():
        return torch.cat([rows for _, rows in per_example.example_gradients(problem)]).cpu().numpy()


def no_map(*_, **__):
    raise RuntimeError("torch cannot map this")


EVAL = ("linear softmax", "mlp", "regression", "dropout in eval", "tied", "frozen", "bn eval")


@pytest.mark.parametrize("chunk", [256, 4])
@pytest.mark.parametrize("name", [*EVAL, "named, though frozen"])
def test_per_example_gradients_match_a_loop(make_case, name, chunk, monkeypatch):
    """Tied, frozen and named parameters, ragged batches; mapped and one by one."""
    case = make_case(name)
    expected = loop(case.model, case.loss, *case.data, case.params)
    monkeypatch.setattr(per_example, "_CHUNK_EXAMPLES", chunk)
    for batch_size in (None, 5):
        problem = make_problem(case.model, case.loss, case.data, params=case.params, batch_size=batch_size)
        np.testing.assert_allclose(streamed(problem), expected, rtol=0, atol=1e-13)
    monkeypatch.setattr(per_example, "vmap", no_map)
    np.testing.assert_allclose(streamed(problem), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", EVAL)
def test_mapping_is_what_runs(make_case, name, monkeypatch):
    """Nothing of the ordinary falls back to the slow loop unnoticed."""
    monkeypatch.setattr(per_example, "_one_by_one", no_map)
    case = make_case(name)
    streamed(make_problem(case.model, case.loss, case.data))


@pytest.mark.parametrize("name", EVAL)
def test_slopes(make_case, name, monkeypatch):
    case = make_case(name)
    problem = make_problem(case.model, case.loss, case.data, batch_size=5)
    v = np.random.default_rng(0).standard_normal(problem.n)
    expected = loop(case.model, case.loss, *case.data) @ v
    with problem.untouched():
        np.testing.assert_allclose(per_example.example_slopes(problem, v)[1], expected, rtol=0, atol=1e-12)
        monkeypatch.setattr(per_example, "vmap", no_map)
        np.testing.assert_allclose(per_example.example_slopes(problem, v)[1], expected, rtol=0, atol=1e-12)


class Branches(nn.Module):
    """Control flow by data, which torch cannot map, and structured inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2).double(), nn.Linear(4, 2).double()

    def forward(self, inputs):
        x, (scale, shared) = inputs["x"], inputs["more"]
        rows = [self.a(r) if r.sum() > 0 else self.b(r) for r in x]
        return torch.stack(rows) * scale[:, None] + shared


def test_structured_inputs_and_control_flow():
    torch.manual_seed(0)
    x, t = torch.randn(7, 4).double(), torch.randn(7, 2).double()
    more = [torch.rand(7).double(), torch.ones(2).double()]
    model = Branches()
    found = streamed(make_problem(model, MSE, [({"x": x, "more": more}, t)]))
    for i in range(7):
        model.zero_grad()
        MSE(model({"x": x[i : i + 1], "more": [more[0][i : i + 1], more[1]]}), t[i : i + 1]).backward()
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        np.testing.assert_allclose(found[i], torch.cat([g.reshape(-1) for g in flat]).numpy(), atol=1e-14)


def test_a_list_of_inputs_of_various_shapes():
    """Such as images of various sizes: cut by entry."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(1, 2).double()

        def forward(self, items):
            return self.out(torch.stack([item.mean()[None] for item in items]))

    items = [torch.rand(k + 4).double() for k in range(3)]
    t = torch.rand(3, 2).double()
    model = Mean()
    found = streamed(make_problem(model, MSE, [(items, t)]))
    expected = streamed(make_problem(model, MSE, [([a], b[None]) for a, b in zip(items, t, strict=True)]))
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_what_has_no_per_example_gradient_is_refused(make_case):
    case = make_case("bn train")
    with pytest.raises(ValueError, match="do not exist"):
        gradient_noise(case.model, case.loss, case.data, mode="train")
    mlp = make_case("mlp")
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 9.0]).double())
    with pytest.raises(ValueError, match="class weights"):
        gradient_noise(mlp.model, weighted, mlp.data)
    dropout = nn.Sequential(nn.Linear(5, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    with pytest.raises(ValueError, match="random layers"):
        gradient_noise(dropout, mlp.loss, mlp.data, mode="train")
    with pytest.raises(ValueError, match="at least 3"):
        gradient_noise(mlp.model, mlp.loss, (mlp.inputs[:2], mlp.targets[:2]))
    with pytest.raises(ValueError, match="cannot be cut"):
        gradient_noise(Opaque(), MSE, [(object(), torch.zeros(4, 1))])


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, _):
        return self.w * torch.ones(4, 1)
