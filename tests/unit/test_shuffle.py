"""Which examples, crops and dropout masks a step gets: pure functions of counters, whatever computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_runs import toy_config, toy_data

from experiments.lab.declare.config import Augment, Machine
from experiments.lab.models.dropout import Dropout, number_dropout_layers
from experiments.lab.training.augment import PAD, Crops, draws
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.initial import initial_model
from experiments.lab.training.shuffle import Shuffle, permutation

N = 5000


def taken(batch_size: int, examples: int, seed: int = 3) -> np.ndarray:
    """The first `examples` positions that batches of `batch_size` take, in order."""
    order = Shuffle(seed, N)
    steps = [torch.cat([p for _, p in order.between(t, t + batch_size)]) for t in range(0, examples, batch_size)]
    assert {len(step) for step in steps} == {batch_size}  # never ragged
    return torch.cat(steps).numpy()[:examples]


def test_batches_are_exact_and_cut_from_permutations() -> None:
    """A dropped or repeated example, or a ragged last batch, would add another noise level."""
    order = taken(512, 4 * N)
    for epoch in range(4):
        assert np.array_equal(np.sort(order[epoch * N : (epoch + 1) * N]), np.arange(N))
    assert not np.array_equal(order[:N], order[N : 2 * N])


@pytest.mark.parametrize("batch_size", [8, 512, 4096, 5000])
def test_order_does_not_depend_on_batch_size(batch_size: int) -> None:
    """Arms of different batch size would see different data at the same epoch."""
    assert np.array_equal(taken(batch_size, 3 * N), taken(1000, 3 * N))


def test_order_depends_on_the_seed() -> None:
    """All seeds would be one."""
    assert not np.array_equal(taken(512, N, seed=3), taken(512, N, seed=4))


def test_asking_out_of_sequence_changes_nothing() -> None:
    """A resume or a bisection would train on other examples."""
    asked = Shuffle(0, N)
    for step in (40, 3, 41, 0, 40, 7):
        fresh = Shuffle(0, N).between(700 * step, 700 * (step + 1))
        assert [(e, p.tolist()) for e, p in asked.between(700 * step, 700 * (step + 1))] == [(e, p.tolist()) for e, p in fresh]


def test_golden_permutation() -> None:
    """numpy may change its streams: then every run trains on another order and SCIENCE_VERSION must be raised."""
    assert permutation(0, 0, 10).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]
    assert draws(0, 1, 3).tolist() == [[2, 3, 1], [4, 7, 1], [4, 8, 0]]


def naive_crop_flip(image: Tensor, top: int, left: int, flip: int) -> Tensor:
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * PAD, width + 2 * PAD)
    padded[:, PAD : PAD + height, PAD : PAD + width] = image
    cropped = padded[:, top : top + height, left : left + width]
    return cropped.flip(2) if flip else cropped


def test_crops_equal_a_loop_over_images() -> None:
    """Images cropped at their neighbour's offset, or flipped before the crop, look plausible."""
    images = torch.rand(64, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    draw = draws(0, 0, 64)
    assert draw[:, :2].min() == 0 and draw[:, :2].max() == 2 * PAD and set(draw[:, 2].tolist()) == {0, 1}
    expected = torch.stack([naive_crop_flip(image, *d) for image, d in zip(images, draw.tolist(), strict=True)])
    assert torch.equal(Crops(images).take(torch.arange(64), draw), expected)


def test_augmentation_belongs_to_seed_epoch_and_example() -> None:
    """An example's crop would depend on the batch size, so arms would differ by more than that."""
    seen = []
    for batch_size in (5, 72):
        config = toy_config(batch_size=batch_size, augment=Augment.CROP_FLIP, steps=1)
        data = toy_data(config).train
        engine = SingleEngine(config, Machine(), toy_data(config), initial_model(config, Machine(), toy_data(config)))
        block = engine.block(-(-2 * len(data) // batch_size))
        assert block.draws is not None
        inputs = data.at(block.positions.flatten(), block.draws.flatten(0, 1))[0][: 2 * len(data)]
        order = torch.cat([torch.from_numpy(permutation(0, epoch, len(data))) for epoch in (0, 1)])
        for epoch in (0, 1):
            part = slice(epoch * len(data), (epoch + 1) * len(data))
            by_example = torch.empty_like(inputs[part])
            by_example[order[part]] = inputs[part]
            expected = [naive_crop_flip(x, *d) for x, d in zip(data.inputs, draws(0, epoch, len(data)).tolist(), strict=True)]
            assert torch.equal(by_example, torch.stack(expected))
        seen.append(inputs)
    assert torch.equal(*seen)
    half = len(seen[0]) // 2
    assert not torch.equal(seen[0][:half], seen[0][half:])


def mask(seed: int = 0, step: int = 0, layer: int = 0, first: int = 0, examples: int = 100, p: float = 0.3) -> Tensor:
    dropout = Dropout(p).train()
    dropout.layer, dropout.counter = layer, torch.tensor([seed, step, first])
    return dropout(torch.ones(examples, 6, 5)) != 0


def test_dropout_masks_are_pure_functions_of_their_counter() -> None:
    """A resume would drop other units."""
    torch.manual_seed(1)
    first = mask()
    torch.manual_seed(2)
    assert torch.equal(first, mask())
    others = [mask(seed=1), mask(step=1), mask(layer=1), mask(first=1)]
    assert all(0.5 < (first == other).float().mean() < 0.66 for other in others)  # .3^2 + .7^2 = .58


def test_dropout_masks_do_not_depend_on_micro_batches() -> None:
    """A micro-batch would change the science."""
    parts = [mask(first=0, examples=37), mask(first=37, examples=63)]
    assert torch.equal(torch.cat(parts), mask())


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dropout_keeps_a_fraction_of_one_minus_p(p: float) -> None:
    """The rate would not be the paper's; examples or units would share masks."""
    kept = mask(examples=20_000, p=p).double()
    assert abs(kept.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / kept.numel())
    assert kept.mean(0).sub(1 - p).abs().max() < 5 * np.sqrt(p * (1 - p) / len(kept))
    flat = kept.flatten() - (1 - p)
    assert abs((flat[1:] * flat[:-1]).mean()) < 4 * p * (1 - p) / np.sqrt(len(flat))


def test_dropout_keeps_the_mean_and_rests_in_evaluation() -> None:
    """Evaluation would be of another function."""
    dropout, x = Dropout(0.5), torch.full((10_000, 4), 3.0)
    assert dropout.train()(x).unique().tolist() == [0.0, 6.0]
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_layers_are_numbered_apart() -> None:
    """Two layers would drop the same positions."""
    model = torch.nn.Sequential(Dropout(0.5), torch.nn.ReLU(), torch.nn.Sequential(Dropout(0.5)))
    number_dropout_layers(model)
    assert [m.layer for m in model.modules() if isinstance(m, Dropout)] == [0, 1]
