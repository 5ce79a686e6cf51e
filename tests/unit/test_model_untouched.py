"""Whatever is measured and however it ends, the model and the global generator are bitwise as before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import sharpness
from sharpness.panels import panel

torch.set_num_threads(1)


class Counter(nn.Module):
    """Replaces its buffer at each forward pass instead of writing to it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.calls = self.calls + 1
        return x


def make_model() -> nn.Sequential:
    """Batch normalisation, dropout, a frozen layer, mixed modes, some gradients: nothing as by default."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), Counter(), nn.Linear(6, 6),
                          nn.Linear(6, 3))
    model(torch.randn(8, 4)).sum().backward()
    model[5].requires_grad_(False)
    model[6].bias.grad = None
    model[1].eval()
    return model


def everything(model: nn.Module, versions: bool = True) -> list[object]:
    """The identity and the bytes of every tensor, every flag, and the generator's state."""
    facts: list[object] = [torch.get_rng_state().numpy().tobytes(), torch.is_grad_enabled()]
    for name, module in model.named_modules():
        facts.append((name, module.training))
        for key, t in [*module._parameters.items(), *module._buffers.items()]:
            if t is not None:
                grad = None if t.grad is None else (id(t.grad), t.grad.numpy().tobytes())
                facts.append(
                    (
                        key,
                        id(t),
                        t.data_ptr(),
                        t._version if versions else None,
                        t.requires_grad,
                        t.detach().numpy().tobytes(),
                        grad,
                    )
                )
    return facts


def data(batches: bool = False):
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(12, 4, generator=generator), torch.randint(0, 3, (12,), generator=generator)
    return list(zip(pair[0].split(5), pair[1].split(5), strict=True)) if batches else pair


def ends():
    return {"start": make_model().state_dict(), "end": make_model().state_dict(), "alphas": [-0.5, 0.5]}


def product(model, loss, **options):
    op = sharpness.hessian(model, loss, data(), **options)
    sharpness.top_eigenvalues(op, 2, max_matvecs=4)


def overlap(model, loss, **options):
    op = sharpness.hessian(model, loss, data(), **options)
    vectors = np.eye(2, op.shape[0])
    sharpness.gradient_hessian_overlap(model, loss, data(), op, vectors, mixtures=2, **options)


def plane(model, loss, **options):
    directions = [sharpness.random_direction(model, seed) for seed in (0, 1)]
    sharpness.slice_2d(model, loss, data(), directions=directions, alphas=[0.0, 0.1], betas=[0.0, 0.1], **options)


def path(model, loss, **options):
    start = model.state_dict()
    end = {name: t + 0.1 if t.is_floating_point() else t for name, t in start.items()}
    sharpness.connect(model, loss, data(), start=start, end=end, steps=2, points=3, **options)


PER_EXAMPLE = ("fisher", "Fisher-Rao", "Fisher-Rao, model", "gradient noise", "overlap")
"""refused where batch normalisation couples the examples"""

MEASUREMENTS: dict[str, Callable] = {
    "hessian": product,
    "hessian, batches": lambda model, loss, **o: product(model, loss, batch_size=5, **o),
    "frozen by name": lambda model, loss, **o: product(model, loss, params=["5.weight"], **o),
    "epsilon": lambda model, loss, **o: sharpness.epsilon_sharpness(model, loss, data(batches=True), iterations=3, **o),
    "epsilon, subspace": lambda model, loss, **o: sharpness.epsilon_sharpness(
        model, loss, data(), subspace=2, iterations=2, **o
    ),
    "slice": lambda model, loss, **o: sharpness.slice_1d(model, loss, data(), **ends(), **o),
    "slice, recalibrated": lambda model, loss, **o: sharpness.slice_1d(
        model, loss, data(), recalibrate=lambda m: m.train()(data()[0]), **ends(), **o
    ),
    "slice, two directions": plane,
    "path": path,
    "ggn": lambda model, loss, **o: sharpness.top_eigenvalues(sharpness.ggn(model, loss, data(), **o), max_matvecs=3),
    "fisher": lambda model, loss, **o: sharpness.top_eigenvalues(
        sharpness.fisher(model, loss, data(), kind="sampled", **o), max_matvecs=3
    ),
    "trace": lambda model, loss, **o: sharpness.trace(sharpness.hessian(model, loss, data(), **o), matvecs=4),
    "density": lambda model, loss, **o: sharpness.spectral_density(
        sharpness.hessian(model, loss, data(), **o), probes=2, steps=3
    ),
    "norm-scaled": lambda model, loss, mode: sharpness.norm_scaled(
        sharpness.top_eigenvalues(sharpness.hessian(model, loss, data(), mode=mode), max_matvecs=3), model
    ),
    "relative trace": lambda model, loss, **o: sharpness.relative_trace(model, loss, data(), probes=2, **o),
    "Fisher-Rao": lambda model, loss, **o: sharpness.fisher_rao_norm(model, loss, data(), **o),
    "Fisher-Rao, model": lambda model, loss, **o: sharpness.fisher_rao_norm(model, loss, data(), labels="model", **o),
    "gradient noise": lambda model, loss, **o: sharpness.gradient_noise(model, loss, data(), **o),
    "overlap": overlap,
    "batch sharpness": lambda model, loss, **o: sharpness.batch_sharpness(model, loss, data(), batch=5, batches=3, **o),
    "worst case": lambda model, loss, **o: sharpness.worst_case_sharpness(
        model, loss, data(), rho=0.1, m=6, steps=3, **o
    ),
    "worst case, one adaptive step": lambda model, loss, **o: sharpness.worst_case_sharpness(
        model, loss, data(), rho=0.1, adaptive=True, steps=1, logit_normalised=True, **o
    ),
    "average case": lambda model, loss, **o: sharpness.average_case_sharpness(
        model, loss, data(batches=True), rho=0.1, draws=2, **o
    ),
    "random": lambda model, loss, **o: sharpness.random_perturbation(model, loss, data(), sigma=0.1, draws=2, **o),
    "PAC-Bayes": lambda model, loss, **o: sharpness.pac_bayes_sigma(
        model, loss, data(), quantity="loss", loss_rise=0.1, draws=2, tolerance=0.5, **o
    ),
    "basin radius": lambda model, loss, **o: sharpness.basin_radius(
        model, loss, data(), directions=2, tolerance=0.1, **o
    ),
    "local entropy": lambda model, loss, **o: sharpness.local_entropy(model, loss, data(), gamma=100.0, samples=4, **o),
    "panel": lambda model, loss, **o: list(
        panel(model, loss, data(), metrics=["lambda_max", "gradient_noise", "random_slice"], **o)
    ),
}


CASES = [(name, mode) for name in MEASUREMENTS for mode in ("eval", "train") if mode == "eval" or name not in PER_EXAMPLE]


@pytest.mark.parametrize("name, mode", CASES)
def test_after_success(name, mode):
    model = make_model()
    before = everything(model)
    MEASUREMENTS[name](model, nn.CrossEntropyLoss(), mode=mode)
    assert everything(model) == before


class FailingLoss:
    """Cross-entropy until the given call, then an exception; counts its calls."""

    def __init__(self, at: float, error: BaseException) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, outputs, targets):
        self.calls += 1
        if self.calls >= self.at:
            raise self.error
        return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize("error", [MemoryError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("name, mode", CASES)
def test_after_an_exception_at_any_call(name, mode, error):
    """First call, last call and some between: each lies in another phase of the measurement."""
    counting = FailingLoss(np.inf, error)
    MEASUREMENTS[name](make_model(), counting, mode=mode)
    for at in {1, 3, 4, counting.calls // 2 + 1, counting.calls}:
        if at > counting.calls:
            continue
        model = make_model()
        before = everything(model)
        with pytest.raises(type(error)):
            MEASUREMENTS[name](model, FailingLoss(at, error), mode=mode)
        assert everything(model) == before, at


def test_after_a_failing_recalibration():
    model = make_model()
    before = everything(model, versions=False)  # the hook itself writes to the parameter

    def fail(moved):
        moved.train()
        moved.zero_grad()
        nn.init.zeros_(moved[0].weight)
        moved[1].running_mean.fill_(9.0)
        raise RuntimeError("no data")

    with pytest.raises(ValueError, match="no data"):
        sharpness.slice_1d(model, nn.CrossEntropyLoss(), data(), recalibrate=fail, **ends())
    assert everything(model, versions=False) == before


def test_after_refused_input():
    model = make_model()
    before = everything(model)
    with pytest.raises(ValueError, match="summed over examples"):
        sharpness.hessian(model, nn.CrossEntropyLoss(reduction="sum"), data())
    assert everything(model) == before


def test_the_callers_grad_mode_does_not_matter():
    """Measured inside no_grad, the same value comes out, and no_grad is still on afterwards."""
    model, loss = make_model(), nn.CrossEntropyLoss()
    expected = sharpness.top_eigenvalues(sharpness.hessian(model, loss, data())).value
    with torch.no_grad():
        before = everything(model)
        assert sharpness.top_eigenvalues(sharpness.hessian(model, loss, data())).value == expected
        assert everything(model) == before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sharpness.top_eigenvalues(sharpness.hessian(model, loss, data())).value == expected


def test_training_goes_on_as_if_nothing_had_been_measured():
    """Weights, gradients and dropout masks after a measurement in mid-training: bitwise the same run."""

    def train(measure: bool):
        model = make_model().train()
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.1)
        inputs, targets = data()
        for step in range(4):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            if measure and step == 2:  # between forward and backward: the caller's graph must survive
                sharpness.epsilon_sharpness(model, nn.CrossEntropyLoss(), data(), iterations=2, mode="train")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [t.numpy().tobytes() for t in model.state_dict().values()]

    assert train(measure=True) == train(measure=False)


def test_memory_does_not_grow_with_products():
    """No graph, gradient or cycle may be left behind by a product."""
    import gc

    model = make_model()
    op = sharpness.hessian(model, nn.CrossEntropyLoss(), data(), batch_size=5)
    v = np.ones(op.shape[0])

    def tensors_after(products: int) -> int:
        for _ in range(products):
            op @ v
        gc.collect()
        return sum(issubclass(type(obj), torch.Tensor) for obj in gc.get_objects())

    tensors_after(2)
    assert tensors_after(10) == tensors_after(1)
