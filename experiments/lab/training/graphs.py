"""A whole update as a CUDA graph: one launch a step, and nothing that makes the host wait.

The graph reads its step from a counter on the device that it advances itself, and positions, augmentation, LR and dropout
counters from tables of a block of steps: every step of the block is replayed without a word from the host.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.lab.training.feed import Block

WARM_UP = 3
"""updates before the capture, on a stream of their own: libraries choose and allocate in them"""

Update = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


class Graph:
    """`update(positions, draws, lr, counter) -> loss`, captured after `WARM_UP` updates. Everything it touches must stay
    where it is in memory."""

    def __init__(self, update: Update, capacity: int) -> None:
        self.update, self.capacity = update, capacity
        self.warm = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, block: Block, step: int, due: Callable[[int], bool]) -> Tensor:
        """Updates `step`, `step + 1`, ... of `block` until it ends or `due`; their losses [done, ...]."""
        eager = []
        while self.warm < WARM_UP and len(eager) < len(block) and not due(step + len(eager)):
            eager.append(self._eagerly(block, len(eager)))
            self.warm += 1
        done = len(eager)
        if self.warm == WARM_UP and done < len(block):
            if self.graph is None:
                self._capture(block)
            self._load(block, done)
            assert self.graph is not None
            while done < len(block) and not due(step + done):
                self.graph.replay()
                done += 1
            eager.append(self.losses[len(eager) : done].clone())
        return torch.cat([loss if loss.dim() > self.members else loss[None] for loss in eager]) if eager else block.lr[:0]

    def _eagerly(self, block: Block, k: int) -> Tensor:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            draws = None if block.draws is None else block.draws[k]
            loss = self.update(block.positions[k], draws, block.lr[k].float(), block.counters[k])
        torch.cuda.current_stream().wait_stream(side)
        return loss

    @property
    def members(self) -> int:
        return self.tables.lr.dim() - 1 if self.graph is not None else 0

    def _capture(self, block: Block) -> None:
        """Record one update; it is not run here."""
        def table(like: Tensor) -> Tensor:
            return torch.zeros(self.capacity, *like.shape[1:], dtype=like.dtype, device=like.device)

        draws = None if block.draws is None else table(block.draws)
        self.tables = Block(table(block.positions), draws, table(block.lr).float(), table(block.counters))
        self.k = torch.zeros(1, dtype=torch.int64, device=block.lr.device)
        self.losses = torch.zeros_like(self.tables.lr)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            t = self.tables
            row = [x if x is None else x.index_select(0, self.k)[0] for x in (t.positions, t.draws, t.lr, t.counters)]
            loss = self.update(*row)  # type: ignore[arg-type]  # only draws may be None
            self.losses.index_copy_(0, self.k, loss[None].float())
            self.k += 1
        self.graph = graph

    def _load(self, block: Block, first: int) -> None:
        """Put the rest of `block` from row `first` on into the tables, in their own rows."""
        self.tables.positions[: len(block)].copy_(block.positions)
        if block.draws is not None and self.tables.draws is not None:
            self.tables.draws[: len(block)].copy_(block.draws)
        self.tables.lr[: len(block)].copy_(block.lr)
        self.tables.counters[: len(block)].copy_(block.counters)
        self.k.fill_(first)
