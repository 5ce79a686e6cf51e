"""What the updates of a run need from outside its network, in blocks of consecutive steps: examples, augmentation, LR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.lab.declare.config import Augment, RunConfig
from experiments.lab.training import augment
from experiments.lab.training.batch_schedule import batch_schedule, total_steps
from experiments.lab.training.data import dtype_of
from experiments.lab.training.schedules import lr_of
from experiments.lab.training.shuffle import Shuffle, noise

BLOCK_EXAMPLES = 1 << 16
"""examples whose positions are worked out at once; changes nothing else"""
BLOCK_STEPS = 512


@dataclass(frozen=True)
class Block:
    """Consecutive steps: positions [S, ..., B] int64, draws [S, ..., B, 3] or None, lr [S, ...] float64, counters [S, ..., 3]
    int64 (see `models.dropout`), weights [S, ..., B] of the examples or None (all 1); ... is one axis of members where several
    runs train as one program."""

    positions: Tensor
    draws: Tensor | None
    lr: Tensor
    counters: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device) -> Block:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> Block:
        """`function` of every tensor that is there."""
        draws, weights = (None if t is None else function(t) for t in (self.draws, self.weights))
        return Block(function(self.positions), draws, function(self.lr), function(self.counters), weights)


def block_steps(batch_size: int) -> int:
    return max(1, min(BLOCK_STEPS, BLOCK_EXAMPLES // batch_size))


class BatchStream:
    """The blocks of one run: pure functions of its config and the step, whatever was asked before."""

    def __init__(self, config: RunConfig, n: int) -> None:
        self.config, self.n, self.total_steps = config, n, total_steps(config, n)
        self.shuffle, self.batches = Shuffle(config.seed, n), batch_schedule(config, n)
        self._draws: dict[int, Tensor] = {}

    def block(self, step: int, count: int) -> Block:
        """Steps `step` to `step + count - 1`, all of one size (`BatchSchedule`)."""
        size = self.batches.at(step).size
        assert self.batches.at(step + count - 1).size == size
        pieces = self.shuffle.between(self.batches.seen(step), self.batches.seen(step + count))
        positions = torch.cat([positions for _, positions in pieces]).view(count, size)
        draws = None
        if self.config.augment is Augment.CROP_FLIP:
            draws = torch.cat([self._drawn(epoch)[positions] for epoch, positions in pieces]).view(count, size, 3)
        lr = [lr_of(self.config, self.batches, step + k, self.total_steps) for k in range(count)]
        counters = torch.zeros(count, 3, dtype=torch.int64)
        counters[:, 0], counters[:, 1] = self.config.seed, torch.arange(step, step + count)
        return Block(positions, draws, torch.tensor(lr, dtype=torch.float64), counters, self._weights(step, count))

    def _weights(self, step: int, count: int) -> Tensor | None:
        """[S, B] weights of the examples, None where all are 1."""
        c = self.config
        if c.noise_batch is None or c.noise_batch == c.batch_size:
            return None
        rows = [torch.from_numpy(noise(c.seed, step + k, c.batch_size, c.noise_batch)) for k in range(count)]
        return torch.stack(rows).to(dtype_of(c))

    def _drawn(self, epoch: int) -> Tensor:
        if epoch not in self._draws:
            drawn = augment.draws(self.config.seed, epoch, self.n)
            self._draws = {k: v for k, v in self._draws.items() if k == epoch - 1} | {epoch: drawn}
        return self._draws[epoch]


def stack(blocks: Sequence[Block]) -> Block:
    """The blocks of several runs over the same steps, as one with an axis of members."""
    draws = [block.draws for block in blocks if block.draws is not None]
    weights = [block.weights for block in blocks if block.weights is not None]
    return Block(
        torch.stack([block.positions for block in blocks], 1),
        torch.stack(draws, 1) if draws else None,
        torch.stack([block.lr for block in blocks], 1),
        torch.stack([block.counters for block in blocks], 1),
        torch.stack(weights, 1) if weights else None,
    )
