"""What moves a run, or several runs as one program, from update to update. The training loop is in `train`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.fused.cuda_graphs import Graph
from experiments.lab.training.batch_schedule import phases_of
from experiments.lab.training.batch_stream import Block, Feed, block_steps
from experiments.lab.training.data import Data
from experiments.lab.training.gradient import Gradient
from experiments.lab.training.optimizers import AVERAGE, Update
from experiments.lab.training.sam import descent
from experiments.lab.training.state import Snapshot, State

Due = Callable[[int], bool]
"""whether something must be done before update `step`"""


RECENT = 20
"""updates over which a loss that is shown is averaged"""


def never(step: int) -> bool:
    return False


class Stepper:
    """Blocks of updates of one run or of several. A subclass has `block` and `update`, and its members' states."""

    def __init__(self, config: RunConfig, machine: Machine, data: Data) -> None:
        self.step = 0
        self.latest: list[Tensor] = []
        """losses of the block under way; a graph's are known at its end"""
        self.data, self.phases = data, phases_of(config, len(data.train))
        self.block_steps = block_steps(config.batch_size)
        self.device = data.train.targets.device
        self.graph = Graph(self.update, self.block_steps) if machine.uses_graphs and config.batch_growth == 1 else None

    def advance(self, until: int, due: Due = never) -> None:
        """Update up to step `until`, or to the first step at which `due` says so."""
        while self.step < until:
            block = self.block(self.count(until)).to(self.device)
            run = self._run if self.graph is None else self.graph.run
            losses = run(block, self.step, due)
            self.step += len(losses)
            self.keep(losses)
            if len(losses) < len(block):
                return

    def count(self, until: int) -> int:
        """Steps of the next block on the way to `until`: all of one batch size."""
        phase = self.phases.at(self.step)
        most = min(self.block_steps, block_steps(phase.size))
        return min(until - self.step, most if phase.end is None else min(most, phase.end - self.step))

    def _run(self, block: Block, step: int, due: Due) -> Tensor:
        losses = self.latest = []
        draws, weights = ([None] * len(block) if t is None else t.unbind() for t in (block.draws, block.weights))
        for positions, draw, lr, counter, weight in zip(
            block.positions.unbind(), draws, self.rates(block.lr), block.counters.unbind(), weights, strict=True
        ):
            if due(step + len(losses)):
                break
            losses.append(self.update(positions, draw, lr, counter, weight))
        return torch.stack(losses) if losses else block.lr[:0]

    def recent_loss(self, member: int = 0) -> float | None:
        """Mean online loss of some last updates, to be shown; None before the first."""
        if self.latest:
            return torch.stack(self.latest[-RECENT:]).mean(0).reshape(-1)[member].item()
        kept = self.losses(member)
        return kept[-1].mean().item() if kept else None

    def losses(self, member: int) -> list[Tensor]:
        """Online losses since `forget_losses`: tensors [k], one loss per batch."""
        raise NotImplementedError

    def block(self, count: int) -> Block:
        """The next `count` steps."""
        raise NotImplementedError

    def rates(self, lr: Tensor) -> Sequence[float | Tensor]:
        """What `update` takes as the learning rates of a block."""
        raise NotImplementedError

    def update(self, positions: Tensor, draws: Tensor | None, lr: float | Tensor, counter: Tensor,
               weights: Tensor | None = None) -> Tensor:
        """One optimizer step on its exact batch: w <- w - optimizer(mean gradient over B examples); returns the loss.

        `weights` [..., B]: of the examples in that mean.
        """
        raise NotImplementedError

    def keep(self, losses: Tensor) -> None:
        """Add a block's losses to the states."""
        raise NotImplementedError


class Single(Stepper):
    """One run: eager at first, then replayed, as recorded operations (CPU) or as a CUDA graph, which give the same bits."""

    def __init__(self, config: RunConfig, machine: Machine, data: Data, model: nn.Module, total_steps: int | None) -> None:
        super().__init__(config, machine, data)
        parameters = list(model.parameters())
        self.state = State(model, Update(config, parameters))
        self.averaged = copy.deepcopy(model) if config.ema else None
        self.feed = Feed(config, len(data.train), total_steps)
        recorded = self.device.type == "cpu"
        self.gradient = Gradient(config, model, parameters, machine.micro_batch, members=False, recorded=recorded)
        self.descent = descent(config, self.gradient)

    def block(self, count: int) -> Block:
        return self.feed.block(self.step, count)

    def rates(self, lr: Tensor) -> Sequence[float | Tensor]:
        return lr.tolist()

    def update(self, positions: Tensor, draws: Tensor | None, lr: float | Tensor, counter: Tensor,
               weights: Tensor | None = None) -> Tensor:
        batch = self.data.train.at(positions, draws)
        loss, gradients = self.descent(counter, *batch) if weights is None else self.descent(counter, *batch, weights)
        self.state.optimizer(gradients, lr)
        return loss

    def keep(self, losses: Tensor) -> None:
        if len(losses):
            self.state.losses.append(losses)

    def model(self, member: int = 0) -> nn.Module:
        """The network at its present weights, for evaluation; at their average (`ema`) a copy, until the next call."""
        if self.averaged is None:
            return self.state.model
        self.averaged.load_state_dict(self.state.model.state_dict())  # buffers of what is not calibrated are the run's
        with torch.no_grad():
            for p, average in zip(self.averaged.parameters(), self.state.optimizer.slots[AVERAGE], strict=True):
                p.copy_(average)
        return self.averaged

    def copy(self, member: int = 0) -> Snapshot:
        return self.state.copy(self.step)

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        self.state.restore(snapshots[0])
        self.step = snapshots[0].step

    def losses(self, member: int = 0) -> list[Tensor]:
        return self.state.losses

    def forget_losses(self, member: int = 0) -> None:
        self.state.losses = []
