"""Rescaled layers leave the function and adaptive measures as they were, and raw curvature not (Dinh et al. 2017)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_runs import run, toy_config, toy_data

from experiments.lab.declare.config import Machine, Model, Norm, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures import rescaling
from experiments.lab.measures.registry import METRICS
from experiments.lab.measures.subject import Subject
from experiments.lab.training.initial import initial_model

torch.set_num_threads(1)


def subject(**fields: object) -> Subject:
    config: RunConfig = toy_config(**{"model": Model.MLP, "steps": 40, "lr": 0.1, **fields})
    outcome, _ = run(config)
    data = toy_data(config)
    model = initial_model(config, Machine(), data, outcome.weights).eval()
    return Subject(config, model, outcome.weights, data)


@pytest.mark.parametrize("model", [Model.MLP, Model.SMALL_CONV])
def test_the_function_stays_and_curvature_does_not(model: Model) -> None:
    """A comparison by lambda_max would be one of parametrisations; an adaptive measure that moves would be no remedy."""
    found = METRICS["rescaled"].of(subject(model=model), examples=72, factor=16.0)
    details = found["details"]
    assert details["largest_output_change"] == 0 and details["test_accuracy_change"] == 0
    assert found["value"] == pytest.approx(details["lambda_max_rescaled"] / details["lambda_max"]) and found["value"] > 2
    assert details["relative_trace_ratio"] == pytest.approx(1, abs=1e-4)
    assert details["adaptive_ratio"] == pytest.approx(1, abs=1e-4)


def test_blocks_of_the_hessian() -> None:
    """tr H_k shrinks by a^2 and that of the next layer grows by it: the closed form of the whole effect."""
    first = subject()
    second = rescaling.rescaled_subject(first, 0, 4.0)
    inputs, targets = first.data.train.inputs.double(), first.data.train.targets

    def block(s: Subject, layer: int) -> float:
        linear = [m for m in s.model.double() if isinstance(m, torch.nn.Linear)][layer]
        weight = linear.weight.detach()

        def loss(flat: torch.Tensor) -> torch.Tensor:
            tensors = {name: p for name, p in s.model.named_parameters()}
            name = next(n for n, p in tensors.items() if p is linear.weight)
            outputs = torch.func.functional_call(s.model, {**tensors, name: flat.view_as(weight)}, (inputs,))
            return torch.nn.functional.cross_entropy(outputs, targets)

        hessian = torch.autograd.functional.hessian(loss, weight.flatten())
        assert isinstance(hessian, torch.Tensor)
        return hessian.trace().item()

    assert block(second, 1) == pytest.approx(16 * block(first, 1), rel=1e-9)


def test_only_where_layers_are_homogeneous() -> None:
    """With batch norm, or a layer without a next one, the function would change and the ratio say nothing."""
    with pytest.raises(ConfigError, match="no chain"):
        METRICS["rescaled"].of(subject(norm=Norm.BATCH), examples=72)
    with pytest.raises(ConfigError, match="has no next one"):
        METRICS["rescaled"].of(subject(), examples=72, layer=2)
    with pytest.raises(ConfigError, match="positive and finite"):
        METRICS["rescaled"].of(subject(), examples=72, factor=-1.0)


def test_disguise_is_for_one_batch_size() -> None:
    """Runs that should stay as trained would be rescaled too, and nothing would flip."""
    s = subject(batch_size=8)
    plain = METRICS["disguised_lambda"].of(s, examples=72, batch_size=16)["value"]
    assert plain == pytest.approx(METRICS["rescaled"].of(s, examples=72)["details"]["lambda_max"], rel=1e-3)
    assert METRICS["disguised_lambda"].of(s, examples=72, batch_size=8)["value"] > 2 * plain


def test_width_of_a_quadratic_bowl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along any direction of length 1 the rise of |w|^2 / 2 is radius^2 / 2; with filters it is that share of |w|^2 / 2."""
    s = subject(width=16, depth=1)
    weights = [p for p in s.model.parameters() if p.ndim == 2]
    square = sum(p.detach().double().square().sum().item() for p in weights)

    def bowl(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return sum((p.square().sum() for p in s.model.parameters()), torch.zeros(())) / 2 + 0 * outputs.sum()

    monkeypatch.setattr(Subject, "loss", staticmethod(bowl))
    raw = METRICS["slice_width"].of(s, examples=72, radius=3.0)
    assert raw["value"] == pytest.approx(4.5, rel=1e-4) and raw["details"]["places"][0] == -3
    scaled = METRICS["filter_slice_width"].of(s, examples=72, radius=0.5)
    assert scaled["value"] == pytest.approx(0.125 * square, rel=1e-3)
    curve = np.array(raw["details"]["train_loss"])
    assert curve.argmin() == len(curve) // 2


def test_filter_widths_ignore_a_rescaling_and_raw_ones_do_not() -> None:
    """Weight norms would decide which minimum looks wide."""
    first = subject()
    second = rescaling.rescaled_subject(first, 0, 4.0)
    raw, scaled = ([METRICS[f].of(s, examples=72, radius=r)["value"] for s in (first, second)]
                   for f, r in (("slice_width", 2.0), ("filter_slice_width", 0.5)))
    assert scaled[1] == pytest.approx(scaled[0], rel=1e-4)
    assert abs(np.log(raw[1] / raw[0])) > 0.2
    with pytest.raises(ConfigError, match="odd number"):
        METRICS["slice_width"].of(first, examples=72, points=8)
