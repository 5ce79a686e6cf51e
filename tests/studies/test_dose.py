"""The doses of noise: what the slope over them is, and that arms differ in nothing else."""

from __future__ import annotations

from math import log2

import pytest

from experiments import dose
from experiments.lab.declare.study import Scale


@pytest.mark.parametrize("scale", dose.STUDY.scales, ids=lambda scale: scale.name)
def test_the_dose_response_is_a_slope_per_halving(scale: Scale) -> None:
    """Weights of another line would call a constant, or another unit, a response."""
    claim = next(c for c in dose.STUDY.claims if c.id == f"{scale.name}-dose-response")
    levels = [(g.weight, log2(scale.settings.large / dict(g.where)["noise_batch"])) for g in claim.contrast.groups]
    assert sum(w for w, _ in levels) == pytest.approx(0, abs=1e-12)
    assert sum(w * (84 + 0.3 * x) for w, x in levels) == pytest.approx(0.3)


@pytest.mark.parametrize("scale", dose.STUDY.scales, ids=lambda scale: scale.name)
def test_arms_differ_in_noise_and_data_alone(scale: Scale) -> None:
    """Another learning rate or number of steps would be taken for what the noise does."""
    settings, seeds = scale.settings, range(1)
    plain, *noise = dose.noise(settings, seeds)
    for noisy, small in zip(noise, dose.small(settings, seeds), strict=True):
        assert noisy.noise_batch == small.noise_batch == small.batch_size
        assert noisy.replace(noise_batch=settings.large) == small.replace(batch_size=settings.large, noise_batch=settings.large)
    assert plain.noise_batch == settings.large  # none is added
