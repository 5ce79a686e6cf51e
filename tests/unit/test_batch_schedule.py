"""A batch that grows (`batch_growth`): which examples each update takes, at which learning rate, and the mean it descends."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from toy_runs import Memory, identical, run, toy_config, toy_data

from experiments.lab.declare.config import Augment, Budget, Machine, Norm, Precision, RunConfig, Schedule, check_fits, program
from experiments.lab.declare.errors import ConfigError
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.training import memory
from experiments.lab.training.batch_schedule import batch_schedule, position, total_steps
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.initial import initial_model
from experiments.lab.training.loop import next_curve_point, train, train_group
from experiments.lab.training.schedules import lr_at, lr_of
from experiments.lab.training.shuffle import permutation

N = 72


def growing(**fields: Any) -> RunConfig:
    defaults = {"batch_size": 4, "batch_growth": 2, "budget": Budget.EPOCHS, "epochs": 2, "lr": 0.1, "momentum": 0.9}
    return toy_config(**(defaults | fields))


@functools.cache
def naive_sizes(size: int, growth: int, epochs: float, n: int) -> list[int]:
    """One update after another: its size is decided by the examples seen so far."""
    units, seen, sizes = max(1, round(epochs * n / size)), 0, []
    while 4 * seen < 3 * units:
        sizes.append(size * (1 if 2 * seen < units else growth))
        seen += sizes[-1] // size
    while seen + growth**2 / 2 <= units:
        sizes.append(size * growth**2)
        seen += growth**2
    return sizes


GROWTHS = [(4, 2, 2, 72), (8, 10, 20, 4000), (5, 3, 1.7, 1000), (1, 2, 1, 9), (3, 50, 1, 10_000), (10, 2, 0.05, 100)]


@pytest.mark.parametrize(("size", "growth", "epochs", "n"), GROWTHS)
def test_sizes(size: int, growth: int, epochs: float, n: int) -> None:
    """A batch grows late or early, a run of growing batches sees more data, or an x axis is not that of the examples."""
    config = toy_config(batch_size=size, batch_growth=growth, budget=Budget.EPOCHS, epochs=epochs)
    schedule, sizes = batch_schedule(config, n), naive_sizes(size, growth, epochs, n)
    assert total_steps(config, n) == len(sizes)
    assert [schedule.at(step).size for step in range(len(sizes))] == sizes
    for step in range(0, len(sizes) + 1, 1 + len(sizes) // 40):
        assert position(step, config, n) == {"step": step, "examples": sum(sizes[:step]), "epoch": sum(sizes[:step]) / n}
        assert schedule.step_with(sum(sizes[:step])) == step
        assert step == 0 or schedule.step_with(sum(sizes[:step]) - 0.5) == step
    assert abs(sum(sizes) - round(epochs * n / size) * size) <= size * growth**2 / 2
    assert sum(sizes[: next_curve_point(n, schedule, 0)]) >= min(n, sum(sizes))


def test_constant_batches_are_as_before() -> None:
    """Existing runs would get other lengths or points."""
    config = growing(batch_growth=1, epochs=2.5)
    schedule = batch_schedule(config, N)
    assert (total_steps(config, N), schedule.seen(7), schedule.units(7), schedule.step_with(29)) == (45, 28, 7, 8)
    assert schedule.phases[0].end is None and len(schedule.phases) == 1


@pytest.mark.parametrize("schedule", Schedule)
def test_schedules_bend_at_the_same_examples(schedule: Schedule) -> None:
    """With growth the learning rate would fall with the updates: the two arms of the paper would differ in their epochs."""
    config = growing(batch_size=8, batch_growth=10, epochs=20, schedule=schedule, warmup=0.1)
    schedule, plain = batch_schedule(config, 4000), config.replace(batch_growth=1)
    for step in range(0, total_steps(config, 4000) or 0, 7):
        assert lr_of(config, schedule, step, 1) == lr_at(plain, schedule.seen(step) // 8, 10_000)
    decays = [part.seen // 8 for part in schedule.phases[1:]]
    assert decays == [5000, 7500]  # where the schedule `step` divides by 10


@pytest.mark.parametrize("augment", Augment)
def test_blocks_are_slices_of_the_permutations(augment: Augment) -> None:
    """Examples dropped or repeated where the size changes."""
    config = growing(augment=augment)
    data = toy_data(config)
    engine, taken, sizes = SingleEngine(config, Machine(), data, initial_model(config, Machine(), data)), [], []
    total = total_steps(config, N) or 0
    while engine.step < total:
        block = engine.block(engine.count(total))
        taken.append(block.positions.flatten())
        sizes += [block.positions.shape[1]] * len(block)
        assert (block.draws is None) == (augment is Augment.NONE)
        engine.step += len(block)
    assert sizes == naive_sizes(4, 2, 2, N)
    order = torch.cat([torch.from_numpy(permutation(0, epoch, N)) for epoch in range(3)])
    assert torch.equal(torch.cat(taken), order[: sum(sizes)])


def test_updates_descend_the_mean_of_their_own_batch() -> None:
    """The gradient of a grown batch, or of its micro-batches, divided by the first size: a larger learning rate in secret."""
    config = growing(precision=Precision.FLOAT64, momentum=0.0, schedule=Schedule.STEP)
    data = toy_data(config)
    model, sizes = initial_model(config, Machine(), data), naive_sizes(4, 2, 2, N)
    order, seen = torch.cat([torch.from_numpy(permutation(0, epoch, N)) for epoch in range(3)]), 0
    for size in sizes:
        batch = order[seen : seen + size]
        loss = torch.nn.functional.cross_entropy(model(data.train.inputs[batch]), data.train.targets[batch])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        lr = 0.1 * 0.1 ** ((2 * seen >= 2 * N) + (4 * seen >= 3 * 2 * N))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= lr * g
        seen += size
    for micro_batch in (None, 3, 4, 8):
        outcome, _ = run(config, machine=Machine(micro_batch=micro_batch))
        assert (outcome.values["steps"], outcome.values["examples"]) == (len(sizes), seen)
        for name, value in model.state_dict().items():
            assert torch.allclose(outcome.weights[name], value, rtol=1e-10, atol=1e-12), (micro_batch, name)


def test_replayed_programs_belong_to_one_batch_size() -> None:
    """A recorded micro-batch of one phase replayed in the next: its part in the mean is another."""
    config = growing(precision=Precision.FLOAT64, batch_size=2, epochs=8, norm=Norm.GHOST, norm_batch=2)
    whole, parts = (run(config, machine=Machine(micro_batch=size))[0] for size in (None, 2))
    assert whole.values["steps"] > 150
    assert all(torch.allclose(whole.weights[k], parts.weights[k], rtol=1e-9, atol=1e-11) for k in whole.weights)


def test_a_row_of_losses_is_of_one_size_and_rate() -> None:
    """Means over batches of different size would be printed as a training loss."""
    config = growing()
    _, log = run(config)
    rows = [row["step"] for row in log.rows if row["kind"] == "train"]
    assert {part.first for part in batch_schedule(config, N).phases[1:]} <= set(rows)
    assert {row["step"] for row in log.rows if row["kind"] == "eval"} <= set(rows)


def test_fused_runs_grow_together() -> None:
    """Runs of one program take one batch size, so only runs that grow at the same steps may share it."""
    configs = [growing(seed=seed, lr=0.05 * (seed + 1), precision=Precision.FLOAT64) for seed in range(2)]
    fused = train_group(configs, Machine(), toy_data(configs[0]), [Memory(), Memory()], make_engine=fused_engine)
    for config, outcome in zip(configs, fused, strict=True):
        alone = train(config, Machine(), toy_data(config), Memory())
        assert outcome.values["steps"] == alone.values["steps"]
        assert all(torch.allclose(outcome.weights[k], alone.weights[k], rtol=1e-9, atol=1e-11) for k in alone.weights)
        assert not identical(outcome.weights, fused[1 - config.seed].weights)
    assert program(configs[0]) != program(configs[0].replace(epochs=3))
    plain = configs[0].replace(batch_growth=1)
    assert program(plain) == program(plain.replace(epochs=3))


def test_what_growth_does_not_go_with() -> None:
    """A batch larger than the data, graphs of one size, or a micro-batch that splits batch norm: silently another run."""
    with pytest.raises(ConfigError, match="grows to 16"):
        check_fits(growing(), 12)
    with pytest.raises(ConfigError, match="graph"):
        Machine(device="cuda", graphs=True).check(growing())
    Machine(device="cuda").check(growing())
    with pytest.raises(ConfigError, match="micro_batch cannot split"):
        Machine(micro_batch=8).check(growing(norm=Norm.BATCH))
    assert memory.smaller(growing(), None) == 8 and memory.smaller(growing(), 8) == 4
