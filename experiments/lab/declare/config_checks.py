"""Which configurations can be run: every field by itself, the budget, and what does not go together."""

from __future__ import annotations

import math
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from experiments.lab.declare.enums import Budget, Loss, Model, Norm, Optimizer, Scaling, Schedule
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.own_code import is_own_data, options_of

if TYPE_CHECKING:
    from experiments.lab.declare.config import RunConfig


def shown(value: Any) -> str:
    """The beginning of a value, on one line."""
    try:
        return repr(value)[:60]
    except ValueError:  # an integer of more than 4,300 digits
        return "a huge number"


_POSITIVE = {
    **dict.fromkeys(("n_train", "width", "depth", "norm_batch", "batch_size", "batch_growth", "noise_batch", "penalty_batch",
                     "base_batch_size", "steps", "epochs", "patience", "max_epochs", "imbalance"), 2.0**53),
    **dict.fromkeys(("lr", "train_loss", "eps", "trust", "clip_norm"), sys.float_info.max),
}
"""field -> its largest value: counts are exact in float64"""
_TRUST = 0.001
"""where it has no meaning it must be its default, so that one run has one id"""
_FRACTIONS = ("momentum", "beta1", "beta2", "warmup", "final_lr", "ema", "label_smoothing", "label_noise")
_NOT_NEGATIVE = ("weight_decay", "sam_rho", "gradient_penalty")
_BUDGET_FIELDS = {
    Budget.EPOCHS: {"epochs"},
    Budget.STEPS: {"steps"},
    Budget.TRAIN_LOSS: {"train_loss", "max_epochs"},
    Budget.PLATEAU: {"patience", "max_epochs"},
}
_BUDGET_NAMES = sorted(set().union(*_BUDGET_FIELDS.values()))


def check_fields(c: RunConfig) -> None:
    values = c.__dict__
    for name, most in _POSITIVE.items():
        value = values[name]
        if value is not None and not 0 < value <= most:
            raise ConfigError(f"{name} is {shown(value)}, but must be a positive number of at most {most:.0e}")
    for name in _FRACTIONS:
        if not 0 <= values[name] < 1 and not (name == "final_lr" and values[name] == 1):
            raise ConfigError(f"{name} is {values[name]}, but must be at least 0 and below 1")
    for name in _NOT_NEGATIVE:
        if not (math.isfinite(values[name]) and values[name] >= 0):
            raise ConfigError(f"{name} is {values[name]}, but must be finite and not negative")
    if c.n_validation < 0:
        raise ConfigError(f"n_validation is {shown(c.n_validation)}, but must not be negative")
    if not 0 <= c.seed < 2**63:
        raise ConfigError(f"seed is {shown(c.seed)}, but must be at least 0 and below 2**63")
    if c.n_train is not None:
        check_batch(c, c.n_train)
    _validate_budget(c)
    _validate_combinations(c)


def check_batch(c: RunConfig, n_train: int) -> None:
    """Raise `ConfigError` where a batch is larger than the training set."""
    if c.batch_size > n_train:
        raise ConfigError(f"batch_size {c.batch_size} exceeds the {n_train} training examples; choose at most {n_train}")
    if (largest := c.batch_size * c.batch_growth**2) > n_train:
        raise ConfigError(
            f"batch_size {c.batch_size} grows to {largest}, more than the {n_train} training examples; choose a smaller one"
        )


def _validate_budget(c: RunConfig) -> None:
    needed = _BUDGET_FIELDS[c.budget]
    for name in _BUDGET_NAMES:
        given = c.__dict__[name] is not None
        if given != (name in needed):
            verb = "needs" if name in needed else "takes no"
            raise ConfigError(f"budget {c.budget} {verb} {name}; it is set by {' and '.join(sorted(needed))}")
    if c.budget in (Budget.TRAIN_LOSS, Budget.PLATEAU) and (c.schedule is not Schedule.CONSTANT or c.warmup):
        raise ConfigError(f"budget {c.budget} has no known length, so its schedule must be constant without warm-up; "
                          "use budget epochs or steps for a schedule")


def _validate_combinations(c: RunConfig) -> None:
    if (c.norm is Norm.GHOST) != (c.norm_batch is not None):
        raise ConfigError("norm_batch belongs to norm ghost: give both or neither")
    if c.norm_batch is not None and c.batch_size % c.norm_batch:
        raise ConfigError(f"norm_batch {c.norm_batch} does not divide batch_size {c.batch_size}; choose a divisor")
    if (c.norm is Norm.BATCH and c.batch_size == 1) or c.norm_batch == 1:
        raise ConfigError("batch normalisation over one example leaves nothing; take norm group or none, or a larger batch")
    if (c.scaling is not Scaling.NONE) != (c.base_batch_size is not None):
        raise ConfigError("base_batch_size belongs to scaling sqrt or linear: give both or neither")
    if c.model is not Model.MLP and (c.width or c.depth):
        raise ConfigError(f"width and depth are for model mlp, not {c.model}; leave them out")
    if c.model in (Model.VIT, Model.CAUSAL_TRANSFORMER) and c.norm is not Norm.NONE:
        raise ConfigError(f"model {c.model} has layer norms of its own, so norm cannot be {c.norm}; take norm none")
    if (c.model is Model.QUADRATIC) != (c.dataset == "noisy-quadratic"):
        raise ConfigError("model quadratic and dataset noisy-quadratic belong together: give both or neither")
    if c.nesterov and not c.momentum:
        raise ConfigError("nesterov needs a momentum above 0")
    if c.nesterov and c.optimizer is not Optimizer.SGD:
        raise ConfigError(f"nesterov is for optimizer sgd, not {c.optimizer}; leave it out")
    if c.momentum and c.optimizer not in (Optimizer.SGD, Optimizer.LARS) and isinstance(c.optimizer, Optimizer):
        raise ConfigError(f"momentum is for optimizer sgd or lars; {c.optimizer} has beta1")
    if c.trust != _TRUST and c.optimizer is not Optimizer.LARS:
        raise ConfigError(f"trust is for optimizer lars, not {c.optimizer}; leave it out")
    if c.final_lr and c.schedule not in (Schedule.LINEAR, Schedule.COSINE):
        raise ConfigError(f"final_lr is for schedules linear and cosine, not {c.schedule}; leave it out")
    if c.data_sha256 is not None and not is_own_data(c.dataset):
        raise ConfigError("data_sha256 is for data of your own; named ones are pinned already")
    if c.noise_batch is not None and c.batch_size == 1:
        raise ConfigError("noise_batch needs a batch_size of at least 2: the weights of one example cannot vary about their mean")
    if c.noise_batch is not None and not c.noise_batch <= c.batch_size:
        raise ConfigError(f"noise_batch {c.noise_batch} exceeds batch_size {c.batch_size}: weights can only add noise")
    if c.batch_growth > 1 and c.budget is not Budget.EPOCHS:
        raise ConfigError(f"batch_growth counts in epochs, so it needs budget epochs, not {c.budget}")
    if c.batch_growth > 1 and c.noise_batch is not None:
        raise ConfigError("batch_growth and noise_batch both set the noise of the gradient; choose one")
    if c.sam_adaptive and not c.sam_rho:
        raise ConfigError("sam_adaptive needs a sam_rho above 0")
    if c.sam_rho and c.gradient_penalty:
        raise ConfigError("sam_rho and gradient_penalty both look along the gradient; choose one")
    if c.penalty_batch is not None:
        _validate_penalty(c, c.penalty_batch)
    _validate_task(c)


def _validate_task(c: RunConfig) -> None:
    own = not isinstance(c.model, Model)
    if own and (c.norm is not Norm.NONE or not c.dropout):
        raise ConfigError("norm and dropout are for built-in models; your own brings its layers with it")
    if c.model_options is not None and not own:
        raise ConfigError(f"model_options are for a model of your own, not {c.model}; leave them out")
    options_of(c.model_options)
    for part in ("model", "loss", "optimizer"):
        if getattr(c, f"{part}_sha256") is not None and isinstance(getattr(c, part), StrEnum):
            raise ConfigError(f"{part}_sha256 is for a {part} of your own, not {getattr(c, part)}")
    if c.label_smoothing and c.loss is not Loss.CROSS_ENTROPY:
        raise ConfigError(f"label_smoothing is for loss cross_entropy, not {c.loss}; leave it out")
    if c.imbalance < 1:
        raise ConfigError(f"imbalance is {c.imbalance}, but must be at least 1: the first class is the largest")
    if c.allow_random and not c.has_own_code:
        raise ConfigError("allow_random is for code of your own; built-in parts draw what the seed says")


def _validate_penalty(c: RunConfig, size: int) -> None:
    if not c.gradient_penalty:
        raise ConfigError("penalty_batch needs a gradient_penalty above 0")
    if c.batch_size % size:
        raise ConfigError(f"penalty_batch {size} does not divide batch_size {c.batch_size}; choose a divisor")
    if c.norm_batch and size % c.norm_batch:
        raise ConfigError(f"penalty_batch {size} is not a multiple of norm_batch {c.norm_batch}; choose one")
    if c.norm is Norm.BATCH and size < c.batch_size:
        raise ConfigError("norm batch normalises over the whole batch, so penalty_batch cannot split it; use ghost")
    if c.batch_growth > 1:
        raise ConfigError("penalty_batch is for batches of one size; leave batch_growth out")
