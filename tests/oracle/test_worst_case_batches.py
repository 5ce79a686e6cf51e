"""m-sharpness: which batches are taken, how they are weighted, and that chunks do not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_nets import CROSS_ENTROPY, class_data, relu_net

from sharpness.flatness.average_case import average_case_sharpness
from sharpness.flatness.worst_case import worst_case_sharpness


def test_batches_of_m_with_a_ragged_end():
    """50 in batches of 16: three of 16, one of 2, weighted by length; each as if it were all the data."""
    model, (x, t) = relu_net(), class_data(50)
    found = worst_case_sharpness(model, CROSS_ENTROPY, (x, t), rho=0.3, m=16, seed=4)
    order = torch.from_numpy(np.random.default_rng([4, 0]).permutation(50))
    values = [worst_case_sharpness(model, CROSS_ENTROPY, (x[i], t[i]), rho=0.3).value for i in order.split(16)]
    weights = np.array([16, 16, 16, 2]) / 50
    assert found.batch_values == pytest.approx(values, rel=1e-9)
    assert found.value == pytest.approx(weights @ values, rel=1e-9)
    spread = np.sqrt((weights**2 * (values - weights @ values) ** 2).sum() * 4 / 3)
    assert found.standard_error == pytest.approx(spread, rel=1e-9)
    assert found.loss == pytest.approx(float(CROSS_ENTROPY(model(x), t).detach()), rel=1e-12)
    assert found.evaluations == 21


def test_sorted_classes_are_shuffled():
    """Batches of one class each would be far sharper than the data are."""
    model, (x, t) = relu_net(), class_data(96)
    order = t.argsort()
    as_is, by_class = (worst_case_sharpness(model, CROSS_ENTROPY, data, rho=0.3, m=16) for data in ((x, t), (x[order], t[order])))
    error = math.hypot(as_is.standard_error, by_class.standard_error)
    assert abs(as_is.value - by_class.value) < 3 * error
    unshuffled = list(zip(x[order].split(16), t[order].split(16), strict=True))
    assert worst_case_sharpness(model, CROSS_ENTROPY, unshuffled, rho=0.3, m=16).value > 1.15 * as_is.value


def test_smaller_batches_are_sharper():
    """max of a mean <= mean of maxima."""
    values = [worst_case_sharpness(relu_net(), CROSS_ENTROPY, class_data(), rho=0.3, m=m).value for m in (None, 16, 4)]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("m", [None, 24])
def test_chunks_do_not_matter(m):
    model, data = relu_net(), class_data()
    for norm in ("l2", "linf"):
        values = [
            worst_case_sharpness(
                model, CROSS_ENTROPY, data, rho=0.1, norm=norm, adaptive=True, m=m, batch_size=size
            ).value
            for size in (None, 48, 7, 1)
        ]
        assert values == pytest.approx([values[0]] * 4, rel=1e-9)
    values = [average_case_sharpness(model, CROSS_ENTROPY, data, rho=0.1, m=m, batch_size=size).value for size in (None, 7)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_loader_of_batches():
    """Its batches are the B; pooled when m is None."""
    model, (x, t) = relu_net(), class_data(50)
    batches = list(zip(x.split(16), t.split(16), strict=True))
    found = worst_case_sharpness(model, CROSS_ENTROPY, batches, rho=0.3, m=16)
    values = [worst_case_sharpness(model, CROSS_ENTROPY, b, rho=0.3).value for b in batches]
    assert found.batch_values == pytest.approx(values, rel=1e-9)
    pooled = worst_case_sharpness(model, CROSS_ENTROPY, batches, rho=0.3)
    assert pooled.value == pytest.approx(worst_case_sharpness(model, CROSS_ENTROPY, (x, t), rho=0.3).value, rel=1e-9)
    with pytest.raises(ValueError, match=r"m is 8 and data comes in batches of \[2, 16\]"):
        worst_case_sharpness(model, CROSS_ENTROPY, batches, rho=0.3, m=8)
    with pytest.raises(ValueError, match="m is 16 and data comes in batches"):
        worst_case_sharpness(model, CROSS_ENTROPY, batches[::-1], rho=0.3, m=16)


def test_two_seeds_agree():
    results = [worst_case_sharpness(relu_net(), CROSS_ENTROPY, class_data(256), rho=0.3, m=16, seed=seed) for seed in (0, 1)]
    assert results[0].value != results[1].value
    assert abs(results[0].value - results[1].value) < 3 * math.hypot(*(r.standard_error for r in results))
