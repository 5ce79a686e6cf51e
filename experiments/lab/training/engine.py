"""What moves a run from update to update: the batch, its gradient, the optimizer. The training loop is in `loop`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from experiments.lab.declare.config import Machine, Optimizer, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.training.batch_stream import BatchStream, Block, block_steps
from experiments.lab.training.data import Data
from experiments.lab.training.gradient import Gradient
from experiments.lab.training.optimizers import Update
from experiments.lab.training.own_optimizer import OwnUpdate
from experiments.lab.training.own_task import keeps_still, load_state, state_of
from experiments.lab.training.sam import descent
from experiments.lab.training.state import Snapshot, Tensors

Due = Callable[[int], bool]
"""whether something must be done before update `step`"""


RECENT = 20
"""updates over which a loss that is shown is averaged"""


def never(step: int) -> bool:
    return False


class Graph(Protocol):
    """What repeats a whole update without a word from the host; see `experiments.lab.fused.cuda_graphs`."""

    def run(self, block: Block, step: int, due: Due) -> Tensor: ...


class Engine:
    """Blocks of updates of one run, or of several members as one program. A subclass has updates and states."""

    gradient: Gradient
    graph: Graph | None = None
    """takes the updates of a block where there is one; the same bits as without"""

    def __init__(self, configs: Sequence[RunConfig], machine: Machine, data: Data) -> None:
        self.step = 0
        self.losses: list[list[Tensor]] = [[] for _ in configs]
        """of each member the online losses since the last row of its history: tensors [k] of k batches"""
        self.latest: list[Tensor] = []
        """losses of the block under way; a graph's are known at its end"""
        self.configs, self.machine, self.data = tuple(configs), machine, data
        self.streams = [BatchStream(config, len(data.train)) for config in configs]
        self.block_steps = block_steps(configs[0].batch_size)
        self.device = data.train.targets.device

    def advance(self, until: int, due: Due = never) -> None:
        """Update up to step `until`, or to the first step at which `due` says so."""
        while self.step < until:
            block = self.block(self.count(until)).to(self.device)
            run = self._run if self.graph is None else self.graph.run
            losses = run(block, self.step, due)
            self.step += len(losses)
            for kept, own in zip(self.losses, losses.reshape(len(losses), len(self.losses)).unbind(1), strict=True):
                kept.extend([own] if len(own) else [])
            if len(losses) < len(block):
                return

    def count(self, until: int) -> int:
        """Steps of the next block on the way to `until`: all of one batch size."""
        phase = self.streams[0].batches.at(self.step)
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
        kept = self.losses[member]
        return kept[-1].mean().item() if kept else None

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

    def model(self, member: int = 0) -> nn.Module:
        """The network at the member's present weights (with `ema` at their average), for evaluation, until the next call."""
        raise NotImplementedError

    def copy(self, member: int = 0) -> Snapshot:
        raise NotImplementedError

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Continue from states of the same step, one per member, bitwise."""
        raise NotImplementedError

    def snapshot(self, member: int, tensors: Tensors) -> Snapshot:
        """Weights and optimizer with what every engine keeps beside them."""
        kept = self.losses[member]
        return Snapshot(self.step, tensors | ({"losses": torch.cat(kept)} if kept else {}))

    def go_on_from(self, snapshots: Sequence[Snapshot]) -> None:
        self.step = snapshots[0].step
        self.losses = [[s.tensors["losses"].to(self.device)] if "losses" in s.tensors else [] for s in snapshots]

    def only(self, members: Sequence[int]) -> Engine:
        """An engine of these members alone, in this order, at their present states."""
        raise NotImplementedError


class SingleEngine(Engine):
    """One run: eager at first, then on a CPU replayed (`replay`), which gives the same bits."""

    def __init__(self, config: RunConfig, machine: Machine, data: Data, model: nn.Module) -> None:
        super().__init__([config], machine, data)
        self.trained, parameters = model, [p for p in model.parameters() if p.requires_grad]
        built_in = isinstance(config.optimizer, Optimizer)
        self.optimizer = Update(config, parameters) if built_in else OwnUpdate(config, parameters)
        self.averaged = copy.deepcopy(model) if self.optimizer.averages else None
        replays = self.device.type == "cpu" and keeps_still(config, data, model)
        self.gradient = Gradient(config, model, parameters, machine.micro_batch, members=False, replays=replays, task=data.task)
        self.descent = descent(config, self.gradient)

    def block(self, count: int) -> Block:
        return self.streams[0].block(self.step, count)

    def rates(self, lr: Tensor) -> Sequence[float | Tensor]:
        return lr.tolist()

    def update(self, positions: Tensor, draws: Tensor | None, lr: float | Tensor, counter: Tensor,
               weights: Tensor | None = None) -> Tensor:
        batch = self.data.train.at(positions, draws)
        loss, gradients = self.descent(counter, *batch) if weights is None else self.descent(counter, *batch, weights)
        self.optimizer(gradients, lr)
        return loss

    def model(self, member: int = 0) -> nn.Module:
        if self.averaged is None:
            return self.trained
        load_state(self.averaged, state_of(self.trained))  # buffers of what is not calibrated are the run's
        learnt = [p for p in self.averaged.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, average in zip(learnt, self.optimizer.averaged(), strict=True):
                p.copy_(average)
        return self.averaged

    def copy(self, member: int = 0) -> Snapshot:
        tensors = {f"model.{name}": value.detach().clone() for name, value in state_of(self.trained).items()}
        return self.snapshot(member, tensors | self.optimizer.state())

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Everything is copied in place: replays hold on to these tensors."""
        (snapshot,) = snapshots
        prefix = "model."
        with torch.no_grad():
            for name, value in state_of(self.trained).items():
                value.copy_(snapshot.tensors[prefix + name])
        self.optimizer.load(snapshot.tensors)
        self.go_on_from(snapshots)

    def only(self, members: Sequence[int]) -> SingleEngine:
        return self


MakeEngine = Callable[[Sequence[RunConfig], Machine, Data, Sequence[nn.Module]], Engine]
"""(configs, machine, data, models) -> engine of these runs at the weights of their models"""


def single_engine(configs: Sequence[RunConfig], machine: Machine, data: Data, models: Sequence[nn.Module]) -> SingleEngine:
    """Raises `ConfigError` for several runs."""
    if len(configs) > 1:
        raise ConfigError(f"{len(configs)} runs as one program need the engine of `experiments.lab.fused`; train them one by one")
    return SingleEngine(configs[0], machine, data, models[0])
