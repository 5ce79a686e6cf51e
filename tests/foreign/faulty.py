"""Code as users bring it, with the faults that they make."""

import numpy as np
import torch
from torch import nn

X, Y = np.linspace(-1, 1, 80, dtype=np.float32).reshape(20, 4), np.arange(20) % 2


def good():
    return X, Y


def net(input_shape, outputs):
    return nn.Linear(4, outputs)


# --- data -------------------------------------------------------------------------------------------------


def wrong_lengths():
    return X, Y[:-1]


def out_of_range():
    return {"train": (X, Y - 1), "test": (X, Y)}


def nan_inputs():
    return np.where(X > 0.9, np.nan, X), Y


def nan_targets():
    return X, np.full(20, np.nan)


def other_each_time():
    return np.random.rand(20, 4), Y


def raises():
    raise RuntimeError("two\nlines")


def exits():
    raise SystemExit(3)


def no_pair():
    return X


def strings():
    return X, np.array(["a", "b"] * 10)


def numbers():
    return X, X[:, :2]


def unlike():
    return {"train": (X, Y), "test": (X[:, :3], Y)}


# --- networks ---------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Its own noise in its own weights, each time it is called."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            self.linear.weight.add_(0.1 * torch.randn_like(self.linear.weight))
        return self.linear(x)


class Assigning(InPlace):
    def forward(self, x):
        with torch.no_grad():
            self.linear.weight *= 0.9
        return self.linear(x)


class Counting(nn.Module):
    """A state that no buffer holds."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


class Noise(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.linear, self.draw = nn.Linear(4, 2), draw

    def forward(self, x):
        return self.linear(x) + self.draw()


def in_place(input_shape, outputs):
    return InPlace()


def assigning(input_shape, outputs):
    return Assigning()


def counting(input_shape, outputs):
    return Counting()


def numpys(input_shape, outputs):
    return Noise(lambda: float(np.random.rand()))


def without_parameters(input_shape, outputs):
    return nn.ReLU()


def frozen(input_shape, outputs):
    return nn.Linear(4, outputs).requires_grad_(False)


def another_shape(input_shape, outputs):
    return nn.Linear(5, outputs)


def another_head(input_shape, outputs):
    return nn.Linear(4, outputs + 1)


def a_tuple(input_shape, outputs):
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    return Pair(4, outputs)


def no_module(input_shape, outputs):
    return [1, 2]


def empty(input_shape, outputs):
    return nn.Linear(4, 0)


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


def detached(input_shape, outputs):
    return Detached(4, outputs)


# --- losses and optimizers --------------------------------------------------------------------------------


def long_loss(outputs, targets):
    return torch.cat([nn.functional.cross_entropy(outputs, targets, reduction="none")] * 2)


def cube_loss(outputs, targets):
    return outputs.new_zeros(len(outputs), 2, 2) + outputs.mean()


def number_loss(outputs, targets):
    return 1.0


def constant_loss(outputs, targets):
    return torch.tensor(1.0)


def triple_loss(outputs, targets):
    return outputs.sum(), 1, 2


def broken_loss(outputs, targets):
    return outputs @ targets


NO_LOSS = 3


def needs_closure(parameters, lr):
    return torch.optim.LBFGS(parameters, lr=lr)


def of_no_parameters(parameters, lr):
    return torch.optim.SGD([], lr=lr)


def no_optimizer(parameters, lr):
    return "sgd"


def without_lr(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def of_other_parameters(parameters, lr):
    return torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=lr)


class OddState(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["history"] = {1, 2}


def odd_state(parameters, lr):
    return OddState(parameters, lr=lr)
