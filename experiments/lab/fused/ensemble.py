"""Runs that differ only in scalars, trained as one program: `torch.func.vmap` over stacked parameters.

Every member keeps its own initial weights, shuffle, augmentation, dropout, learning rate and stop rule. A member
that has ended is taken out, and the others go on in a smaller program. Fused gradients are those of single runs up to
rounding, so membership belongs to a run's execution plan (`plan.json`), never to its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experiments.lab.declare.config import Machine, Optimizer, RunConfig
from experiments.lab.fused.cuda_graphs import Graph
from experiments.lab.training.batch_stream import Block, stack
from experiments.lab.training.data import Data
from experiments.lab.training.engine import Engine, SingleEngine
from experiments.lab.training.gradient import Gradient
from experiments.lab.training.initial import initial_model
from experiments.lab.training.layerwise import lamb_, lars_
from experiments.lab.training.optimizers import AVERAGE, clipped, slot_names
from experiments.lab.training.sam import descent
from experiments.lab.training.state import Snapshot, Tensors


class StackedUpdate:
    """The optimizer over weights [M, P], one row per member, each with its own hyper-parameters.

    The equations are those of a single run's `Update`. `slots[name]` is [M, P]; `shapes` are those of the parameters that
    follow each other in a row (default: one vector).
    """

    def __init__(self, configs: Sequence[RunConfig], weights: Tensor, shapes: Sequence[torch.Size] | None = None) -> None:
        self.config, self.weights = configs[0], weights
        self.shapes = [weights.shape[1:]] if shapes is None else list(shapes)
        self.slots = {name: weights.clone() if name == AVERAGE else torch.zeros_like(weights)
                      for name in slot_names(configs[0]) if name != "step"}
        self.count = torch.zeros((), dtype=torch.float64, device=weights.device)

        def column(name: str, dtype: torch.dtype = weights.dtype) -> Tensor:
            return torch.tensor([getattr(c, name) for c in configs], dtype=dtype, device=weights.device)[:, None]

        self.decay, self.momentum, self.eps = (column(name) for name in ("weight_decay", "momentum", "eps"))
        self.betas = column("beta1", torch.float64), column("beta2", torch.float64)
        self.decays = any(c.weight_decay for c in configs)

    def parts(self, flat: Tensor) -> list[Tensor]:
        """[M, P] as windows [M, *shape], one per parameter."""
        parts = flat.split([shape.numel() for shape in self.shapes], 1)
        return [part.view(len(flat), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @torch.no_grad()
    def __call__(self, gradient: Tensor, lr: Tensor) -> None:
        """One update, in place; gradient [M, P], lr [M, 1]."""
        (gradient,) = clipped([gradient], self.config.clip_norm, 1)
        if self.config.optimizer in (Optimizer.LARS, Optimizer.LAMB):
            self._layerwise(gradient, lr[:, 0])
        else:
            self._elementwise(gradient, lr)
        if self.config.ema:
            self.slots[AVERAGE].lerp_(self.weights, 1 - self.config.ema)

    def _layerwise(self, gradient: Tensor, lr: Tensor) -> None:
        w, g, slots = self.parts(self.weights), self.parts(gradient), {n: self.parts(s) for n, s in self.slots.items()}
        decay = self.decay[:, 0]
        if self.config.optimizer is Optimizer.LARS:
            buffers = slots.get("momentum_buffer", [None] * len(w))
            lars_(w, g, buffers, lr=lr, trust=self.config.trust, momentum=self.momentum[:, 0], decay=decay, axis=1)
            return
        self.count += 1
        beta1, beta2 = (beta[:, 0] for beta in self.betas)
        lamb_(w, g, slots["exp_avg"], slots["exp_avg_sq"], count=self.count, lr=lr, beta1=beta1, beta2=beta2,
              eps=self.eps[:, 0], decay=decay, axis=1)

    def _elementwise(self, gradient: Tensor, lr: Tensor) -> None:
        """Heavy ball with dampening 0, Adam and AdamW, as torch's."""
        w, c = self.weights, self.config
        if self.decays and c.optimizer is Optimizer.ADAMW:
            w.mul_(1 - lr * self.decay)
        elif self.decays:
            gradient = gradient + self.decay * w
        if c.optimizer is Optimizer.SGD:
            if "momentum_buffer" in self.slots:
                buffer = self.slots["momentum_buffer"].mul_(self.momentum).add_(gradient)
                gradient = gradient + self.momentum * buffer if c.nesterov else buffer
            w.sub_(lr * gradient)
            return
        self.count += 1
        first, second = self.slots["exp_avg"], self.slots["exp_avg_sq"]
        beta1, beta2 = (beta.to(w.dtype) for beta in self.betas)
        first.mul_(beta1).add_(gradient * (1 - self.betas[0]).to(w.dtype))
        second.mul_(beta2).add_(gradient.square() * (1 - self.betas[1]).to(w.dtype))
        bias1, bias2 = (1 - beta**self.count for beta in self.betas)
        step = (lr.double() / bias1).to(w.dtype)
        w.sub_(step * first / (second.sqrt() / bias2.sqrt().to(w.dtype) + self.eps))


class Ensemble(Engine):
    """M runs as one program; member i of `configs` is row i of everything."""

    def __init__(self, configs: Sequence[RunConfig], machine: Machine, data: Data, models: Sequence[nn.Module]) -> None:
        super().__init__(configs, machine, data)
        self.scratch = models[0]
        flat = [torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in models]
        self.optimizer = StackedUpdate(configs, torch.stack(flat), [p.shape for p in self.scratch.parameters()])
        self.gradient = Gradient(
            configs[0], self.scratch, self.optimizer.parts(self.optimizer.weights), machine.micro_batch, members=True,
            replays=self.device.type == "cpu",
        )
        self.descent = descent(configs[0], self.gradient)

    def block(self, count: int) -> Block:
        return stack([stream.block(self.step, count) for stream in self.streams])

    def rates(self, lr: Tensor) -> Sequence[float | Tensor]:
        return lr.to(self.optimizer.weights.dtype).unbind()

    def update(self, positions: Tensor, draws: Tensor | None, lr: float | Tensor, counter: Tensor,
               weights: Tensor | None = None) -> Tensor:
        assert isinstance(lr, Tensor)
        batch = self.data.train.at(positions, draws)
        losses, gradients = self.descent(counter, *batch) if weights is None else self.descent(counter, *batch, weights)
        self.optimizer(torch.cat([g.reshape(len(g), -1) for g in gradients], 1), lr[:, None])
        return losses

    def model(self, member: int = 0) -> nn.Module:
        """The shared network with the member's present weights, or their average: for evaluation, until the next call."""
        return self._show(member, self.optimizer.slots.get(AVERAGE, self.optimizer.weights))

    def _show(self, member: int, flat: Tensor) -> nn.Module:
        with torch.no_grad():
            for p, rows in zip(self.scratch.parameters(), self.optimizer.parts(flat), strict=True):
                p.copy_(rows[member])
        return self.scratch

    def copy(self, member: int = 0) -> Snapshot:
        """As a single run's state would be copied."""
        shown = self._show(member, self.optimizer.weights).state_dict()
        tensors: Tensors = {f"model.{n}": v.detach().clone() for n, v in shown.items()}
        parameters = list(self.scratch.parameters())
        for name, flat in self.optimizer.slots.items():
            for index, rows in enumerate(self.optimizer.parts(flat)):
                tensors[f"optimizer.{index}.{name}"] = torch.empty_like(parameters[index]).detach().copy_(rows[member])
        if "step" in slot_names(self.configs[0]):
            for index in range(len(parameters)):
                tensors[f"optimizer.{index}.step"] = self.optimizer.count.float()
        return self.snapshot(member, tensors)

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Continue from states of the same step, one per member."""
        names = [f"model.{name}" for name, _ in self.scratch.named_parameters()]
        with torch.no_grad():
            for member, snapshot in enumerate(snapshots):
                tensors = snapshot.tensors
                for name, rows in zip(names, self.optimizer.parts(self.optimizer.weights), strict=True):
                    rows[member].copy_(tensors[name])
                for slot, flat in self.optimizer.slots.items():
                    for index, rows in enumerate(self.optimizer.parts(flat)):
                        rows[member].copy_(tensors[f"optimizer.{index}.{slot}"])
        self.go_on_from(snapshots)
        self.optimizer.count.fill_(self.step)

    def only(self, members: Sequence[int]) -> Engine:
        configs = [self.configs[member] for member in members]
        snapshots = [self.copy(member) for member in members]
        models = [initial_model(config, self.machine, self.data) for config in configs]
        engine = fused_engine(configs, self.machine, self.data, models)
        engine.restore(snapshots)
        return engine


def fused_engine(configs: Sequence[RunConfig], machine: Machine, data: Data, models: Sequence[nn.Module]) -> Engine:
    """The engine of one run or of several, its updates as CUDA graphs where the machine uses them."""
    several = len(configs) > 1
    engine = Ensemble(configs, machine, data, models) if several else SingleEngine(configs[0], machine, data, models[0])
    if machine.uses_graphs and configs[0].batch_growth == 1:
        engine.graph = Graph(engine.update, engine.block_steps)
    return engine
