"""A model, and its loss, as functions of the selected weights: for torch.func."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from sharpness.problem.problem import Problem

Weights = dict[str, Tensor]


class _Objective(nn.Module):
    """Model and loss in one module, so that a loss that reads the model's weights sees those put in."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model, self.criterion = problem.model, problem.criterion
        self._call, self._loss = problem.call, problem.loss

    def forward(self, inputs: Any, targets: Any, with_loss: bool) -> Any:
        outputs = self._call(self.model, inputs)
        return self._loss(outputs, targets) if with_loss else outputs


class Functional:
    """`outputs(weights, inputs)` and `loss(weights, inputs, targets)`; weights by the problem's names.

    Every place of the module tree that holds a selected parameter gets the weight put in, once: torch's own
    tying puts it twice into a module that the tree contains twice, and cannot take it out again.
    """

    def __init__(self, problem: Problem) -> None:
        training = problem.model.training
        self._objective = _Objective(problem)
        self._objective.training = training
        of = {id(p): name for name, p in zip(problem.names, problem.parameters, strict=True)}
        self._places: list[tuple[str, str]] = []  # place, name
        for path, module in self._objective.named_modules():
            for key, parameter in module._parameters.items():
                if id(parameter) in of:
                    self._places.append((f"{path}.{key}" if path else key, of[id(parameter)]))

    def outputs(self, weights: Weights, inputs: Any) -> Any:
        return functional_call(self._objective, self._all(weights), (inputs, None, False), tie_weights=False)

    def loss(self, weights: Weights, inputs: Any, targets: Any) -> Tensor:
        return functional_call(self._objective, self._all(weights), (inputs, targets, True), tie_weights=False)

    def _all(self, weights: Weights) -> Weights:
        """With clones of the buffers: a model may write to them."""
        buffers = {name: b.clone() for name, b in self._objective.named_buffers()}
        return buffers | {place: weights[name] for place, name in self._places}
