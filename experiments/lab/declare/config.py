"""What a training run *is* (`RunConfig`) and how it is computed (`Machine`).

Everything that changes the science of a run is a field of `RunConfig`; its `run_id` is a hash of those fields.
Everything that changes rounding at most is a field of `Machine` and never enters the hash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import typing
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any

from experiments.lab.declare.config_checks import check_batch, check_fields, shown
from experiments.lab.declare.enums import (
    Augment,
    Budget,
    Loss,
    Model,
    Norm,
    Optimizer,
    Precision,
    Scaling,
    Schedule,
    TrainDraw,
)
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.own_code import is_own, kind_of_data

SCIENCE_VERSION = 1
"""Raised only when the golden weights of `tests/unit/test_golden.py` change, never by a mere commit."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that changes the science of one training run.

    Conventions: `lr` is per update of the batch-mean gradient (per batch, not per example); `weight_decay` is added to
    that gradient for SGD, LARS and Adam (coupled, torch's convention) and is decoupled, multiplied by the LR, for AdamW and LAMB.

    Raises `ConfigError` (one sentence) for a combination that cannot be run.
    """

    dataset: str = "fashion-mini"
    """name of the data set, or your own: MODULE:FUNCTION, npz:FILE, images:FOLDER, idx:FOLDER, cifar-bin:FOLDER, text:FILE"""
    data_sha256: str | None = None
    """content hash of your own data; filled in when the run is planned"""
    n_train: int | None = None
    """training examples used, the first in the order of `train_draw` (default: all that validation leaves)"""
    n_validation: int = 0
    """examples held out for tuning, the last in the order of `train_draw`"""
    train_draw: TrainDraw = TrainDraw.FIRST
    """order of the examples, of which every subset takes the first. first: that of the files, which only the data sets of
    published results keep; for all others it becomes `fixed` when the run is planned. fixed: one random order, always the same"""
    augment: Augment = Augment.NONE
    """crop-flip: 4-pixel zero padding, random crop, horizontal flip; a pure function of (seed, epoch, example)"""

    label_noise: float = 0.0
    """share of the training labels, drawn by the seed alone, that become another class, each equally likely"""
    imbalance: float = 1.0
    """how many times as many training examples the first class keeps as the last, with a geometric sequence between"""

    model: Model | str = Model.MLP
    """the network, or MODULE:FUNCTION of your own, called with what its signature takes of `input_shape` and `outputs`"""
    model_options: str | None = None
    """what else your own function is called with, NAME=VALUE with blanks between, sorted (default: nothing)"""
    model_sha256: str | None = None
    """hash of the source of your own network; filled in when the run is planned"""
    width: int | None = None
    """units per hidden layer, mlp only (default: 512, Keskar's F1)"""
    depth: int | None = None
    """hidden layers, mlp only (default: 5, Keskar's F1)"""
    norm: Norm = Norm.NONE
    """normalisation after each layer; ghost: batch norm over `norm_batch` examples at a time"""
    norm_batch: int | None = None
    """examples that share statistics, ghost only; divides batch_size"""
    dropout: bool = True
    """the model's own dropout rates (only Keskar's C nets have any), or none at all"""

    batch_size: int
    """examples per update, B; exact at every step"""
    batch_growth: int = 1
    """factor by which B grows once half of the budget's examples are seen, and again at three quarters (Smith et al. 2018)"""
    noise_batch: int | None = None
    """weights the examples of each batch by 1 + s xi (xi of mean 0 and variance 1, sum 0 over the batch, s^2 = B / b - 1): the
    gradient noise of batch size b = noise_batch with the data of B; on the loss alone, not on batch norm (default: weights 1)"""
    loss: Loss | str = Loss.CROSS_ENTROPY
    """what is minimised, or MODULE:NAME of your own, a function of (outputs, targets)"""
    loss_sha256: str | None = None
    """hash of the source of your own loss; filled in when the run is planned"""
    label_smoothing: float = 0.0
    """share of the training target spread evenly over the classes; evaluation never smooths"""
    optimizer: Optimizer | str = Optimizer.SGD
    """the rule of an update, or MODULE:FUNCTION of your own, called with the parameters and `lr`"""
    optimizer_sha256: str | None = None
    """hash of the source of your own optimizer; filled in when the run is planned"""
    lr: float
    """learning rate before the scaling rule, per update"""
    scaling: Scaling = Scaling.NONE
    """how the learning rate grows with batch_size / base_batch_size"""
    base_batch_size: int | None = None
    """batch size at which `scaling` leaves `lr` unchanged"""
    momentum: float = 0.0
    """heavy-ball coefficient of SGD (dampening 0) and LARS"""
    nesterov: bool = False
    """Nesterov's form of momentum (SGD)"""
    beta1: float = 0.9
    """decay of the mean of the gradients (Adam, AdamW, LAMB)"""
    beta2: float = 0.999
    """decay of the mean of their squares (Adam, AdamW, LAMB)"""
    eps: float = 1e-8
    """added to the root of that mean (Adam, AdamW, LAMB)"""
    weight_decay: float = 0.0
    """coupled for SGD, LARS and Adam, decoupled and multiplied by the learning rate for AdamW and LAMB"""
    trust: float = 0.001
    """LARS's trust coefficient"""
    clip_norm: float | None = None
    """largest l2 norm of the whole gradient; a longer one is scaled down to it, before weight decay (default: no limit)"""
    sam_rho: float = 0.0
    """radius of sharpness-aware minimisation (Foret et al. 2021): the gradient is taken at w + rho g / ||g||"""
    sam_adaptive: bool = False
    """ASAM (Kwon et al. 2021): the radius is relative to each weight"""
    gradient_penalty: float = 0.0
    """c of the objective L + c ||grad L||^2 / 2 on each batch (Geiping et al. 2022)"""
    penalty_batch: int | None = None
    """examples whose gradient is penalised together, the mean over parts of the batch; divides batch_size (default: all)"""
    ema: float = 0.0
    """decay per update of an average of the weights, which is what is evaluated and kept; 0: the weights themselves"""

    schedule: Schedule = Schedule.CONSTANT
    """shape after warm-up; `step` divides by 10 at 1/2 and 3/4 of the budget"""
    warmup: float = 0.0
    """fraction of the budget over which the LR rises linearly from 0"""
    final_lr: float = 0.0
    """end of the linear or cosine schedule, as a fraction of the peak LR"""

    budget: Budget
    """what ends the run: the flag of the same name, for `plateau` --patience"""
    epochs: float | None = None
    """budget `epochs`: passes over the training set"""
    steps: int | None = None
    """budget `steps`: updates"""
    train_loss: float | None = None
    """budget `train_loss`: target of the evaluation-mode mean cross-entropy (nats) on training examples"""
    patience: float | None = None
    """budget `plateau`: epochs without a 1% improvement of that cross-entropy"""
    max_epochs: float | None = None
    """limit of the budgets `train_loss` and `plateau`; a run that reaches it has exhausted its budget (status `capped`)"""

    precision: Precision = Precision.FLOAT32
    """bfloat16: autocast forward and backward, float32 weights"""
    tf32: bool = False
    """float32 products in TensorFloat-32, on a GPU"""
    seed: int = 0
    """initial weights, data order, augmentation, dropout and label noise"""
    allow_random: bool = False
    """train a network of your own although it draws random numbers that no seed fixes; such a run cannot be repeated exactly"""
    parent: str | None = None
    """run_id whose final weights are the initial ones (default: fresh initialisation)"""

    def __post_init__(self) -> None:
        values = self.__dict__
        for name in _KINDS:
            values[name] = typed(name, values[name])
        check_fields(self)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the scaling rule, per update."""
        if self.scaling is Scaling.NONE or self.base_batch_size is None:
            return self.lr
        ratio = self.batch_size / self.base_batch_size
        return self.lr * (ratio if self.scaling is Scaling.LINEAR else math.sqrt(ratio))

    @property
    def fusible(self) -> bool:
        """Whether runs like this one can be one program: of the project's own parts, with cross-entropy over classes."""
        return not self.has_own_code and self.loss is Loss.CROSS_ENTROPY and self.model is not Model.CAUSAL_TRANSFORMER

    @property
    def has_own_code(self) -> bool:
        """Whether network, loss or optimizer are the user's."""
        return any(isinstance(part, str) and not isinstance(part, StrEnum) for part in (self.model, self.loss, self.optimizer))

    @functools.cached_property
    def run_id(self) -> str:
        """First 20 hex digits of the SHA-256 of `canonical`: the run's name everywhere."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:20]

    def canonical(self) -> str:
        """Canonical JSON of the fields away from their frozen defaults, so that a new field keeps old ids.

        A user's own data count by their content: moved, they are the same; edited, they are not.
        """
        fields = {"science_version": SCIENCE_VERSION, **self.to_dict()}
        if self.data_sha256 is not None:
            fields["dataset"] = kind_of_data(self.dataset)
        return _JSON.encode(fields)

    def to_dict(self) -> dict[str, Any]:
        """Only the fields that differ from their defaults; `from_dict` restores the config."""
        values = self.__dict__
        return {name: value for name, default in _DEFAULTS if (value := values[name]) is not default and value != default}

    def full_dict(self) -> dict[str, Any]:
        """Every field, defaults included: one row of the `runs` table."""
        return {name: self.__dict__[name] for name in _KINDS}

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with other values, validated as a whole; only they are typed anew, for grids of 100,000 runs are made so."""
        if not changes.keys() <= _KINDS.keys():
            return dataclasses.replace(self, **changes)  # the error of an unknown field
        values = self.__dict__.copy()
        values.pop("run_id", None)
        for name, value in changes.items():
            values[name] = typed(name, value)
        new = object.__new__(RunConfig)
        object.__setattr__(new, "__dict__", values)
        check_fields(new)
        return new

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> RunConfig:
        """Inverse of `to_dict`; raises `ConfigError` for an unknown field or value."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise ConfigError(f"a run has no field {unknown[0]!r}; the fields are {', '.join(known)}")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"this run configuration is incomplete: {error}") from error

    @classmethod
    def recorded(cls, run_id: str, fields: dict[str, Any]) -> RunConfig:
        """A config read from records that name every field, under the id it has there whatever the defaults are today."""
        config = cls.from_dict(fields)
        config.__dict__["run_id"] = run_id
        return config


OWN = {"model": "MODULE:FUNCTION", "loss": "MODULE:NAME", "optimizer": "MODULE:FUNCTION"}
"""fields that may name a user's code, and how"""
_KINDS: dict[str, tuple[type, bool]] = {
    name: ((typing.get_args(hint) or (hint,))[0], NoneType in typing.get_args(hint))
    for name, hint in typing.get_type_hints(RunConfig).items()
}
"""field -> its type, and whether it may be None"""
_DEFAULTS = tuple((f.name, f.default) for f in dataclasses.fields(RunConfig))
_JSON = json.JSONEncoder(sort_keys=True, allow_nan=False)


def typed(name: str, value: Any) -> Any:
    """`value` in the type of its field: 400 and 400.0 epochs are one run, not two."""
    kind, optional = _KINDS[name]
    if type(value) is kind or (optional and value is None):
        return value
    if name in OWN and isinstance(value, str) and is_own(value):
        return str(value)
    if issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError:
            choices = ", ".join(kind) + (f" or {OWN[name]} of your own" if name in OWN else "")
            raise ConfigError(f"{name} is {shown(value)}, but must be one of {choices}") from None
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond every float
            return float(value)
    raise ConfigError(f"{name} is {shown(value)}, but must be of type {kind.__name__}")


SCALARS = frozenset({"seed", "lr", "scaling", "base_batch_size", "momentum", "beta1", "beta2", "eps", "weight_decay", "schedule",
                     "warmup", "final_lr", "epochs", "steps", "train_loss", "patience", "max_epochs", "parent"})
"""fields in which runs that are trained as one program may differ: they change numbers, not the program"""


def program(config: RunConfig) -> tuple[Any, ...]:
    """Equal for runs that can be trained as one program: where the batch grows, runs of other lengths grow at other steps, and
    where labels are altered, runs of other seeds have other data."""
    growth = (config.epochs,) if config.batch_growth > 1 else ()
    noise = (config.seed,) if config.label_noise else ()
    return (*(getattr(config, name) for name, _ in _DEFAULTS if name not in SCALARS), config.momentum > 0, *growth, *noise)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How a run is computed; changes rounding at most."""

    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    threads: int = 1
    """threads of one worker; one per core with one worker per core is fastest on CPU"""
    micro_batch: int | None = None
    """examples per forward pass, a multiple of norm_batch (default: the whole batch)"""
    fused: int | None = None
    """runs trained as one program at most (1: each alone; default: as many as a short measured trial finds to pay)"""
    graphs: bool | None = None
    """replay updates as CUDA graphs (default: on a GPU)"""
    data_dir: Path | None = None

    @property
    def uses_graphs(self) -> bool:
        return self.device.startswith("cuda") if self.graphs is None else self.graphs

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` where `micro_batch` would change the science of `config`."""
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}, but must be positive")
        if self.fused is not None and self.fused < 1:
            raise ConfigError(f"fused is {self.fused}, but must be positive; 1 trains each run alone")
        if self.graphs and not self.device.startswith("cuda"):
            raise ConfigError(f"graphs are CUDA's, but the device is {self.device}; leave graphs out")
        if self.graphs and config.batch_growth > 1:
            raise ConfigError("a CUDA graph is of one batch size, but batch_growth makes several; leave graphs out")
        if self.micro_batch is None:
            return
        if self.micro_batch < 1:
            raise ConfigError(f"micro_batch is {self.micro_batch}, but must be positive")
        if config.norm is Norm.BATCH and self.micro_batch < config.batch_size * config.batch_growth**2:
            raise ConfigError("norm batch normalises over the whole batch, so micro_batch cannot split it; use ghost")
        if config.norm_batch and self.micro_batch % config.norm_batch:
            raise ConfigError(f"micro_batch {self.micro_batch} is not a multiple of norm_batch {config.norm_batch}")


def check_fits(config: RunConfig, available: int, apart: int | None = None) -> int:
    """Training examples of `config` in a data set with `available` of them; raises `ConfigError` where it is too small.

    `apart`: validation examples that the data keep besides (default: they are taken from those for training).
    """
    if apart is not None:
        if config.n_validation > apart:
            raise ConfigError(f"n_validation {config.n_validation} exceeds the {apart} validation examples of {config.dataset}")
        available += config.n_validation
    n_train = available - config.n_validation if config.n_train is None else config.n_train
    if not 0 < n_train <= available - config.n_validation:
        raise ConfigError(f"n_train {n_train} and n_validation {config.n_validation} exceed the {available} training examples of "
                          f"{config.dataset}; choose smaller ones")
    check_batch(config, n_train)
    return n_train
