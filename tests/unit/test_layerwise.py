"""LARS, LAMB, clipped gradients and averaged weights against their equations, alone and as members of one program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import run, toy_config, toy_data

from experiments.lab.declare.config import Budget, Machine, Norm, Optimizer, Precision, RunConfig
from experiments.lab.fused.ensemble import Ensemble, StackedUpdate
from experiments.lab.training import gradient as gradients
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.evaluate import evaluate
from experiments.lab.training.initial import initial_model
from experiments.lab.training.optimizers import Update

Arrays = list[np.ndarray]
SHAPES = [(3, 2), (2,), (2, 1, 2, 2), (4,)]
"""weights, bias, kernel, bias"""


def gradient(weights: Arrays) -> Arrays:
    return [(1 + np.arange(w.size).reshape(w.shape)) * w + 0.5 for w in weights]


def start(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape) for shape in SHAPES]


def by_the_papers(config: RunConfig, weights: Arrays, lrs: list[float]) -> tuple[Arrays, Arrays]:
    """Weights and their average after the updates. LARS: You et al. 2017, Algorithm 1; LAMB: You et al. 2020, Algorithm 2;
    the average starts at the initial weights."""
    v, m = ([np.zeros_like(w) for w in weights] for _ in range(2))
    average = [w.copy() for w in weights]
    weights, c, norm = list(weights), config, np.linalg.norm
    for t, lr in enumerate(lrs, 1):
        gradients = gradient(weights)
        whole = norm(np.concatenate([g.ravel() for g in gradients]))
        if c.clip_norm is not None and whole > c.clip_norm:
            gradients = [g * c.clip_norm / whole for g in gradients]
        for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            if c.optimizer is Optimizer.LAMB:
                m[i] = c.beta1 * m[i] + (1 - c.beta1) * g
                v[i] = c.beta2 * v[i] + (1 - c.beta2) * g**2
                u = m[i] / (1 - c.beta1**t) / (np.sqrt(v[i] / (1 - c.beta2**t)) + c.eps) + c.weight_decay * w
                step = lr * (norm(w) / norm(u) if w.ndim > 1 else 1) * u
            elif c.optimizer is Optimizer.LARS:
                local = c.trust * norm(w) / (norm(g) + c.weight_decay * norm(w)) if w.ndim > 1 else 1
                step = v[i] = c.momentum * v[i] + lr * local * (g + c.weight_decay * w)
            else:
                v[i] = c.momentum * v[i] + g + c.weight_decay * w
                step = lr * v[i]
            weights[i] = w - step
            average[i] = c.ema * average[i] + (1 - c.ema) * weights[i]
    return weights, average


CASES: dict[str, dict[str, Any]] = {
    "lars": {"optimizer": Optimizer.LARS, "momentum": 0.9, "trust": 0.02, "weight_decay": 0.1},
    "lars, no momentum": {"optimizer": Optimizer.LARS, "ema": 0.7},
    "lamb": {"optimizer": Optimizer.LAMB, "weight_decay": 0.1, "beta2": 0.95, "eps": 1e-3, "clip_norm": 2.0},
    "clipped, averaged": {"momentum": 0.5, "weight_decay": 0.1, "clip_norm": 1.0, "ema": 0.8},
}
LRS = [0.03, 0.03, 0.02, 0.01, 0.005, 0.03]
"""not constant: a rate inside the momentum and one outside differ"""


@pytest.mark.parametrize("name", CASES)
def test_updates_follow_their_papers(name: str) -> None:
    """One ratio for all tensors, a rate outside of LARS's momentum, moments without their correction, decay that is clipped."""
    config = toy_config(**CASES[name])
    tensors = [torch.tensor(w) for w in start(0)]
    update = Update(config, tensors)
    for lr in LRS:
        update([torch.from_numpy(g) for g in gradient([w.numpy() for w in tensors])], lr)
    expected, average = by_the_papers(config, start(0), LRS)
    for found, value in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(found.numpy(), value, rtol=1e-11)
    for found, value in zip(update.slots.get("average", []), average, strict=False):
        np.testing.assert_allclose(found.numpy(), value, rtol=1e-11)
    assert ("average" in update.slots) == bool(config.ema)


@pytest.mark.parametrize("name", CASES)
def test_members_have_their_own_norms(name: str) -> None:
    """A ratio or a clipping over all members, or another member's decay."""
    configs = [toy_config(**CASES[name]).replace(weight_decay=0.1 * i) for i in range(3)]
    flat = torch.stack([torch.from_numpy(np.concatenate([w.ravel() for w in start(i)])) for i in range(3)])
    update = StackedUpdate(configs, flat, [torch.Size(shape) for shape in SHAPES])
    for lr in LRS:
        gradients = [torch.from_numpy(np.stack(g)).flatten(1) for g in zip(
            *(gradient([p[i].numpy() for p in update.parts(flat)]) for i in range(3)), strict=True)]
        update(torch.cat(gradients, 1), lr * torch.tensor([[1.0], [0.5], [2.0]], dtype=torch.float64))
    for i, config in enumerate(configs):
        expected, average = by_the_papers(config, start(i), [lr * (1.0, 0.5, 2.0)[i] for lr in LRS])
        np.testing.assert_allclose(flat[i].numpy(), np.concatenate([w.ravel() for w in expected]), rtol=1e-11)
        if config.ema:
            np.testing.assert_allclose(update.slots["average"][i], np.concatenate([w.ravel() for w in average]), rtol=1e-11)


def test_limits() -> None:
    """At a zero norm a ratio of 0 or NaN would freeze or lose a tensor; vectors alone make LARS plain SGD."""
    for optimizer in (Optimizer.LARS, Optimizer.LAMB):
        for w, g in ((torch.zeros(2, 2), torch.ones(2, 2)), (torch.ones(2, 2), torch.zeros(2, 2))):
            moved = w.clone()
            Update(toy_config(optimizer=optimizer, eps=1e-30), [moved])([g], 0.5)
            torch.testing.assert_close(moved, w - 0.5 * g)
    plain, vectors = torch.linspace(-1, 2, 5), torch.linspace(-1, 2, 5)
    sgd = Update(toy_config(momentum=0.9), [plain])
    lars = Update(toy_config(momentum=0.9, optimizer=Optimizer.LARS), [vectors])
    for _ in range(5):
        sgd([plain + 1], 0.1)
        lars([vectors + 1], 0.1)
    torch.testing.assert_close(plain, vectors)


def test_clipping() -> None:
    """A shorter gradient would be touched, or a longer one cut elementwise; torch's own divides by its norm + 1e-6."""
    base = toy_config(batch_size=8)
    free, _ = run(base)
    loose, _ = run(base.replace(clip_norm=1e9))
    assert all(torch.equal(free.weights[name], w) for name, w in loose.weights.items())
    w = torch.zeros(4, requires_grad=True)
    w.grad = torch.tensor([3.0, 0, 0, 4.0])
    moved = torch.zeros(4)
    Update(base.replace(clip_norm=0.5), [moved])([w.grad.clone()], 1.0)
    torch.nn.utils.clip_grad_norm_([w], 0.5)
    torch.testing.assert_close(moved, -w.grad, rtol=1e-6, atol=0)


def test_averages_are_what_is_evaluated_and_kept() -> None:
    """The averages would be trained on, or the present weights be published, or batch norm be calibrated at them."""
    base = toy_config(precision=Precision.FLOAT64, norm=Norm.BATCH, momentum=0.9, batch_size=8)
    config, data = base.replace(ema=0.8), toy_data(base)
    averaged, log = run(config)
    plain, raw = run(base)
    trajectory = [raw.checkpoints[step].current.tensors for step in sorted(raw.checkpoints)]
    assert log.checkpoints[5].current.tensors.keys() > trajectory[5].keys()
    assert all(torch.equal(log.checkpoints[5].current.tensors[name], raw.checkpoints[5].current.tensors[name])
               for name in ("model.layers.0.weight", "optimizer.0.momentum_buffer") if name in trajectory[5])
    model = initial_model(config, Machine(), data)
    for name, start_ in model.named_parameters():
        expected = start_.detach().clone()
        for weights in [*[t[f"model.{name}"] for t in trajectory[1:]], plain.weights[name]]:
            expected = 0.8 * expected + 0.2 * weights
        torch.testing.assert_close(averaged.weights[name], expected, rtol=1e-11, atol=1e-13)
    model.load_state_dict(averaged.weights)
    assert evaluate(model, data.test.inputs, data.test.targets).loss == averaged.values["test_loss"] != plain.values["test_loss"]
    assert any(key.endswith("running_mean") and not torch.equal(w, plain.weights[key]) for key, w in averaged.weights.items())


def test_members_resume_bitwise() -> None:
    """A group's averages or counts would begin anew at a checkpoint, or be another member's."""
    base = toy_config(optimizer=Optimizer.LAMB, lr=0.01, ema=0.9)
    configs, data = [base.replace(seed=seed) for seed in range(3)], toy_data(base)

    def group() -> Ensemble:
        return Ensemble(configs, Machine(), data, [initial_model(c, Machine(), data) for c in configs])

    straight, first, second = group(), group(), group()
    straight.advance(6)
    first.advance(4)
    second.restore([first.copy(member) for member in range(3)])
    second.advance(6)
    for member in range(3):
        a, b = straight.copy(member).tensors, second.copy(member).tensors
        assert all(torch.equal(a[name], b[name]) for name in a if name != "losses")
        shown = dict(straight.model(member).named_parameters())
        assert all(torch.equal(p, a[f"optimizer.{i}.average"]) for i, p in enumerate(shown.values()))
        assert not torch.equal(a["optimizer.0.average"], next(iter(a.values())))


def test_a_child_begins_at_the_average() -> None:
    """A warm start would begin where nobody looked; its own average begins there too."""
    parent, _ = run(toy_config(ema=0.9))
    child, log = run(toy_config(ema=0.9, steps=2), parent=parent.weights)
    first = log.checkpoints[0].current.tensors
    for index, (name, w) in enumerate(parent.weights.items()):
        assert torch.equal(first[f"model.{name}"], w) and torch.equal(first[f"optimizer.{index}.average"], w)
    assert child.values["steps"] == 2


def test_the_target_is_met_by_the_average() -> None:
    """The stop rule would look at other weights than those that are kept."""
    config = toy_config(budget=Budget.TRAIN_LOSS, train_loss=0.3, max_epochs=60, batch_size=8, ema=0.95)
    outcome, _ = run(config)
    assert outcome.status == "done" and outcome.reason is None
    assert 0.27 <= outcome.values["train_loss"] <= 0.3


def test_smoothed_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation would be smoothed too, the online loss be of the hard labels, or the recorded program of others."""
    base = toy_config(precision=Precision.FLOAT64, batch_size=72, steps=1, label_smoothing=0.2)
    outcome, log = run(base)
    data = toy_data(base)
    model = initial_model(base, Machine(), data)
    logits = model(data.train.inputs).log_softmax(1)
    hard = -logits.gather(1, data.train.targets[:, None]).mean()
    loss = 0.8 * hard - 0.2 * logits.mean()
    assert log.rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-12)
    names = [name for name, _ in model.named_parameters()]
    for name, p, g in zip(names, model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(outcome.weights[name], p - base.lr * g, rtol=1e-11, atol=1e-14)
    model.load_state_dict(outcome.weights)
    scores = evaluate(model, data.train.inputs, data.train.targets)
    assert outcome.values["train_loss"] == scores.loss
    monkeypatch.setattr(gradients, "RECORD_AFTER", 0)
    engine = SingleEngine(base, Machine(), data, initial_model(base, Machine(), data))
    engine.advance(3)
    assert None not in engine.gradient._programs.values() and len(engine.gradient._programs) == 1
    monkeypatch.undo()
    eager = SingleEngine(base, Machine(), data, initial_model(base, Machine(), data))
    eager.advance(3)
    assert all(torch.equal(a, b) for a, b in zip(engine.model().parameters(), eager.model().parameters(), strict=True))
    assert scores.loss == pytest.approx(torch.nn.functional.cross_entropy(model(data.train.inputs), data.train.targets).item())
