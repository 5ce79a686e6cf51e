"""A whole update as a CUDA graph: one launch per step, and nothing that makes the host wait.

The graph reads its step from a counter on the device that it advances itself, and positions, augmentation, LR, dropout
counters and weights from tables of a block of steps: every step of the block is replayed without a word from the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from experiments.lab.training.batch_stream import Block

WARM_UP = 3
"""updates before the capture, on a stream of their own: libraries choose and allocate in them"""

Update = Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor | None], Tensor]
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""records what a function does on the device, without running it; gives what repeats it"""


def capture(body: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph.replay


class Graph:
    """`update(positions, draws, lr, counter, weights) -> loss`, captured after `WARM_UP` updates. Everything it touches must stay
    where it is in memory."""

    def __init__(self, update: Update, capacity: int, capture: Capture = capture) -> None:
        self.update, self.capacity, self.capture = update, capacity, capture
        self.warm = 0
        self.replay: Callable[[], None] | None = None

    def run(self, block: Block, step: int, due: Callable[[int], bool]) -> Tensor:
        """Updates `step`, `step + 1`, ... of `block` until it ends or `due`; their losses [done, ...]."""
        block = dataclasses.replace(block, lr=block.lr.float())
        losses = torch.zeros_like(block.lr)
        done = 0
        while self.warm < WARM_UP and done < len(block):
            if due(step + done):
                return losses[:done]
            losses[done] = self._eagerly(block, done)
            self.warm, done = self.warm + 1, done + 1
        if done < len(block):
            first = done
            self._load(block, first)
            if self.replay is None:
                self.replay = self.capture(self._body)
            while done < len(block) and not due(step + done):
                self.replay()
                done += 1
            losses[first:done] = self.losses[first:done]
        return losses[:done]

    def _eagerly(self, block: Block, k: int) -> Tensor:
        with _side_stream(block.lr.device):
            return self._update(block.map(lambda t: t[k]))

    def _update(self, row: Block) -> Tensor:
        return self.update(row.positions, row.draws, row.lr, row.counters, row.weights)

    def _body(self) -> None:
        """One update, of the tables' row `k`."""
        loss = self._update(self.tables.map(lambda table: table.index_select(0, self.k)[0]))
        self.losses.index_copy_(0, self.k, loss[None].float())
        self.k += 1

    def _load(self, block: Block, first: int) -> None:
        """Put `block` into the tables; the next update is that of its row `first`."""
        if self.replay is None:
            self.tables = block.map(lambda t: t.new_zeros(self.capacity, *t.shape[1:]))
            self.k = torch.zeros(1, dtype=torch.int64, device=block.lr.device)
            self.losses = torch.zeros_like(self.tables.lr)
        pairs = [(self.tables.positions, block.positions), (self.tables.lr, block.lr), (self.tables.counters, block.counters)]
        optional = ((self.tables.draws, block.draws), (self.tables.weights, block.weights))
        pairs += [(table_, rows) for table_, rows in optional if table_ is not None and rows is not None]
        for table_, rows in pairs:
            table_[: len(block)].copy_(rows)
        self.k.fill_(first)


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Another stream on a GPU, as the warm-up of a capture needs; nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream(device).wait_stream(side)
