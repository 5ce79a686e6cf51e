"""Hessian-vector products against dense Hessians computed by another route."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sharpness import hessian, top_eigenvalues


def _op(case, **changes):
    options = {"params": case.params, "mode": case.mode} | changes
    return hessian(case.model, case.loss, options.pop("data", case.data), **options)


def test_products_equal_the_dense_hessian(case):
    """Wrong under a missing 1/N, a lost cross term of tied weights, or the wrong BN mode."""
    dense = case.dense_hessian()
    product = _op(case) @ np.eye(len(dense))
    np.testing.assert_allclose(product, dense, rtol=0, atol=1e-12 * np.abs(dense).max())


def test_top_eigenvalues_equal_eigvalsh(case):
    dense = np.linalg.eigvalsh(case.dense_hessian())[::-1][:3]
    found = top_eigenvalues(_op(case), 3, tol=1e-7)
    assert found.converged
    np.testing.assert_allclose(found.values, dense, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 6, 12, 13, 100])
@pytest.mark.parametrize("name", ["mlp", "bn eval", "tied"])
def test_batch_size_changes_nothing_in_eval_mode(make_case, name, batch_size):
    """13 examples: an unweighted mean over batches of 12 and 1 would be several times off."""
    case = make_case(name)
    v = np.random.default_rng(0).standard_normal(len(case.dense_hessian()))
    expected = case.dense_hessian() @ v
    np.testing.assert_allclose(_op(case, batch_size=batch_size) @ v, expected, rtol=1e-9, atol=1e-12)


def test_every_form_of_data_gives_the_same_hessian(make_case):
    case = make_case("mlp")
    v = np.ones(len(case.dense_hessian()))
    pairs = list(zip(case.inputs.split(5), case.targets.split(5), strict=True))
    forms = {
        "list": pairs,
        "one batch in a list": [case.data],
        "ragged, with an empty batch": [(case.inputs[:0], case.targets[:0]), *pairs],
        "loader": DataLoader(TensorDataset(*case.data), batch_size=4),
        "shuffling loader": DataLoader(TensorDataset(*case.data), batch_size=4, shuffle=True),
    }
    for name, data in forms.items():
        op = _op(case, data=data)
        np.testing.assert_allclose(op @ v, case.dense_hessian() @ v, atol=1e-12, err_msg=name)
        assert op.examples == 13, name


def test_structured_inputs_reach_the_model(make_case):
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_case("mlp").model

        def forward(self, inputs):
            return self.inner(inputs["a"] + inputs["b"])

    case = make_case("mlp")
    halves = [({"a": case.inputs / 4, "b": case.inputs * 0.75}, case.targets)]
    op = hessian(TwoInputs(), case.loss, halves)
    np.testing.assert_allclose(op @ np.eye(op.shape[0]), case.dense_hessian(), atol=1e-12)


def test_batch_statistics_make_train_mode_depend_on_the_batches(make_case):
    """If both agreed, train mode would not be using batch statistics at all."""
    case = make_case("bn train")
    v = np.ones(len(case.dense_hessian()))
    assert np.abs(_op(case, batch_size=5) @ v - _op(case) @ v).max() > 1e-3


def test_dropout_masks_repeat_in_train_mode(make_case):
    """With fresh masks at each product the operator would be a different matrix each time."""
    case = make_case("dropout in eval")
    for batch_size in (None, 5):
        op = _op(case, mode="train", batch_size=batch_size)
        v = np.ones(op.shape[0])
        first = op @ v
        torch.rand(3)
        np.testing.assert_array_equal(op @ v, first)
        assert np.abs(first - case.dense_hessian() @ v).max() > 1e-3  # the mask is on


def test_kinds_and_counts(make_case):
    case = make_case("mlp")
    op = _op(case)
    n = op.shape[0]
    assert op.shape == (n, n) and op.dtype == np.float64 and op.mode == "eval"
    v = torch.linspace(-1, 1, 2 * n, dtype=torch.float32).reshape(n, 2)
    product = op @ v
    assert isinstance(product, torch.Tensor) and product.shape == (n, 2) and product.dtype == torch.float64
    assert isinstance(op @ v[:, 0].numpy(), np.ndarray)
    assert op.matvecs == 3
    assert hessian(case.model.float(), case.loss, (case.inputs.float(), case.targets)).dtype == np.float32
    with pytest.raises(ValueError, match="v has shape"):
        op @ np.ones(n + 1)


def test_float32_products_are_accurate(make_case):
    case = make_case("mlp")
    dense = case.dense_hessian()
    v = np.random.default_rng(1).standard_normal(len(dense))
    case.model.float()
    for batch_size in (None, 4):
        product = hessian(case.model, case.loss, (case.inputs.float(), case.targets), batch_size=batch_size) @ v
        assert product.dtype == np.float64
        assert np.linalg.norm(product - dense @ v) < 1e-5 * np.linalg.norm(dense @ v)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_changed_weights_are_refused(make_case, batch_size):
    """A retained graph mixes old activations with new weights, silently if written through .data."""
    for write in lambda p: p.data.mul_(2.0), lambda p: nn.init.ones_(p), lambda p: setattr(p, "data", p.data + 1):
        case = make_case("mlp")
        op = _op(case, batch_size=batch_size)
        op @ np.ones(op.shape[0])
        write(case.model[0].weight)
        with pytest.raises(ValueError, match="model changed"):
            op @ np.ones(op.shape[0])


def test_rewriting_the_same_weights_is_accepted(make_case):
    """Loading the same checkpoint again raises the version of every saved tensor; the graph is rebuilt."""
    case = make_case("bn eval")
    op = _op(case)
    v = np.ones(op.shape[0])
    first = op @ v
    case.model.load_state_dict({name: t.clone() for name, t in case.model.state_dict().items()})
    np.testing.assert_array_equal(op @ v, first)


def test_other_users_of_the_model_between_products(make_case):
    """The caller's own forward and backward pass must not disturb the retained graph, nor be disturbed."""
    case = make_case("mlp")
    op = _op(case)
    v = np.ones(op.shape[0])
    first = op @ v
    mine = case.loss(case.model(case.inputs), case.targets)
    op @ v
    mine.backward()
    np.testing.assert_array_equal(op @ v, first)


def test_attention_has_a_second_derivative():
    """The fused attention kernels do not."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3).double())
    op = hessian(model, nn.CrossEntropyLoss(), (torch.randn(4, 3, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])))
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, op.shape[0]))
    assert abs(u @ (op @ v) - v @ (op @ u)) < 1e-10 * abs(u @ (op @ v))


def test_zero_curvature(make_case):
    """A loss linear in the weights, or independent of them: the Hessian is zero, not an error."""
    model = nn.Linear(5, 1).double()
    inputs = make_case("mlp").inputs
    for loss in (lambda out, _: out.mean(), lambda out, _: (out * 0).detach().mean()):
        op = hessian(model, loss, (inputs, torch.zeros(13)))
        np.testing.assert_array_equal(op @ np.ones(6), np.zeros(6))


class Sampler:
    """Re-iterable, but empty from the second pass on."""

    def __init__(self, batch):
        self.batches = [batch]

    def __iter__(self):
        yield from self.batches
        self.batches = []


def _refusals():
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    model, mean = nn.Linear(5, 3), nn.CrossEntropyLoss()
    broken = nn.Linear(5, 3)
    nn.init.constant_(broken.bias, float("nan"))
    return {
        "summed loss": ((model, nn.CrossEntropyLoss(reduction="sum"), (x, y)), {}, "summed over examples"),
        "unreduced loss": ((model, nn.CrossEntropyLoss(reduction="none"), (x, y)), {}, "instead of a scalar"),
        "loss of NaN": ((model, lambda o, t: o.mean() * float("nan"), (x, y)), {}, "loss is nan"),
        "no parameters": ((nn.ReLU(), mean, (x, y)), {}, "no parameter with requires_grad"),
        "NaN weights": ((broken, mean, (x, y)), {}, "'bias' of the model contains NaN"),
        "half precision": ((nn.Linear(5, 3).bfloat16(), mean, (x.bfloat16(), y)), {}, "bfloat16"),
        "generator": ((model, mean, (pair for pair in [(x, y)])), {}, "one-shot iterator"),
        "no examples": ((model, mean, (x[:0], y[:0])), {}, "no examples"),
        "no batches": ((model, mean, []), {}, "no examples"),
        "lengths": ((model, mean, (x, y[:5])), {}, "same number of examples"),
        "not pairs": ((model, mean, [x, y, x]), {}, "data holds a Tensor"),
        "not iterable": ((model, mean, 3), {}, "data holds a int"),
        "unknown name": ((model, mean, (x, y)), {"params": ["w"]}, "names no parameter"),
        "string": ((model, mean, (x, y)), {"params": "weight"}, "list of parameter names"),
        "twice": ((model, mean, (x, y)), {"params": ["bias", "bias"]}, "same parameter twice"),
        "batch size": ((model, mean, (x, y)), {"batch_size": 0}, "batch_size is 0"),
        "batch size of batches": ((model, mean, [(x, y)]), {"batch_size": 2}, "leave batch_size None"),
        "mode": ((model, mean, (x, y)), {"mode": "test"}, "mode is 'test'"),
    }


@pytest.mark.parametrize("name", list(_refusals()))
def test_wrong_input_is_refused_in_one_sentence(name):
    arguments, options, message = _refusals()[name]
    with pytest.raises(ValueError, match=message) as refusal:
        hessian(*arguments, **options)
    assert "\n" not in str(refusal.value)


def test_a_loss_of_exactly_zero_does_not_hide_a_sum():
    """Twice zero is zero: the check must look elsewhere."""
    model = nn.Linear(5, 1).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="summed over examples"):
        hessian(model, nn.MSELoss(reduction="sum"), (x, model(x).detach()))
    assert hessian(model, nn.MSELoss(), (x, model(x).detach())).examples == 6


def test_data_that_runs_out_is_noticed():
    """Silently averaging nothing would give a Hessian of zero: the first pass is kept."""
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    model = nn.Linear(5, 3)
    op = hessian(model, nn.CrossEntropyLoss(), Sampler((x, y)))
    np.testing.assert_allclose(op @ np.ones(18), hessian(model, nn.CrossEntropyLoss(), (x, y)) @ np.ones(18), atol=1e-7)


def test_mean_losses_of_every_kind_are_accepted():
    """The check for summed losses must not refuse means, weighted means and ignored targets among them."""
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]), label_smoothing=0.1)
    for loss in (weighted, nn.CrossEntropyLoss(ignore_index=0), nn.MultiMarginLoss()):
        assert hessian(nn.Linear(5, 3), loss, (x, y)).shape == (18, 18)
