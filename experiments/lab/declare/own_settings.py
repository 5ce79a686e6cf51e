"""What a study is asked with on a user's own task: sizes that fit the data, a matched loss that fits the loss, and no settings
that only built-in networks have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.enums import Augment, Budget, Loss, Model, Norm, Optimizer
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.own_code import is_own_data

NAME = "own task"
"""of the only network of a study, in its sentences"""
VALIDATION_SHARE, BATCH_SHARE, FEWEST = 5, 10, 2
"""of the data that are smaller than the scale: one part in 5 for validation, one in 10 is the largest batch; of a batch"""
CHANCE = math.log(10)
"""the loss in nats of a guess among ten classes: what a scale's own matched losses are shares of"""
MATCHED = ("target", "train_loss")
"""settings that are a training loss to stop at"""
BUILT_IN = {"width": None, "depth": None, "norm": Norm.NONE, "norm_batch": None, "widths": (), "depths": ()}
"""settings of built-in networks alone, and what they are for another"""


@dataclass(frozen=True)
class Facts:
    """What is known of data without reading them again."""

    kind: str
    """of the targets: classes, numbers or tokens"""
    images: bool
    outputs: int
    train: int | None
    """examples, None where there are enough for every scale"""
    validation: int | None
    """examples that the data keep apart for it, None where they are taken from those for training"""

    @property
    def accurate(self) -> bool:
        """Whether accuracy has a meaning."""
        return self.kind != "numbers"


class Known(Protocol):
    """Where a study's settings learn what a task is like."""

    def facts(self, dataset: str) -> Facts: ...

    def initial_loss(self, config: RunConfig) -> float:
        """The training loss of the network of `config` before its first update."""
        ...


def own_parts(settings: Any) -> tuple[str, ...]:
    """Which parts of the task are the user's: their code or data, or a loss other than cross-entropy."""
    kinds = {"model": Model, "loss": Loss, "optimizer": Optimizer}
    found = [name for name, kind in kinds.items() if not isinstance(getattr(settings, name), kind)]
    if "loss" not in found and settings.loss is not Loss.CROSS_ENTROPY:
        found.append("loss")
    return (*found, *(["dataset"] if is_own_data(settings.dataset) else []))


def fitted(base: Any, changes: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """Further changes of the settings `base`, beside those that the user gave, for an own task."""
    asked = {field.name: getattr(base, field.name) for field in fields(base)} | dict(changes)
    found: dict[str, Any] = {}
    if not isinstance(asked["model"], Model):
        found |= BUILT_IN
    if asked["optimizer"] not in (Optimizer.SGD, Optimizer.LARS):
        found["momentum"] = 0.0
    if not facts.images:
        found["augment"] = Augment.NONE
    found |= {"networks": (), "name": NAME, "network": NAME, "warm": ()}  # warm starts are of no claim
    if facts.train is not None:
        found |= _sizes(base, asked, changes, facts)
    return {name: value for name, value in found.items() if name in asked and name not in changes and asked[name] != value}


def _sizes(base: Any, asked: Mapping[str, Any], changes: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """Examples and batch sizes that fit. Raises `UsageError` for given ones that do not."""
    total, apart, data = facts.train or 0, facts.validation, asked["dataset"]
    n_train, held = asked["n_train"], asked["n_validation"]
    if "n_validation" not in changes:
        if apart is not None:
            held = min(held, apart)
        elif held + (n_train or total) > total:
            held = min(held, total // VALIDATION_SHARE)
    if apart is None and held >= total:
        raise UsageError(f"n_validation {held} leaves none of the {total} training examples of {data}; choose a smaller one")
    if apart is not None and held > apart:
        raise UsageError(f"n_validation {held} exceeds the {apart} validation examples of {data}; choose a smaller one")
    room = total if apart is not None else total - held
    if "n_train" not in changes and n_train is not None:
        n_train = min(n_train, room)
    count = room if n_train is None else n_train
    if count > room:
        raise UsageError(f"n_train {count} and n_validation {held} exceed the {total} training examples of {data}; "
                         "choose smaller ones")
    found = {"n_validation": held, "n_train": n_train}
    if "examples" in asked:
        found["examples"] = min(asked["examples"], count)
    old = base.batch_sizes
    if "batch_sizes" in changes:
        new = asked["batch_sizes"]
        if new[-1] > count:
            raise UsageError(f"batch_sizes ends at {new[-1]}, but there are {count} training examples; choose smaller ones")
    elif base.n_train is not None and count >= base.n_train:
        return found
    else:
        most = count if old[-1] == base.n_train else min(old[-1], max(FEWEST, count // BATCH_SHARE))
        new = (old[0] if old[0] <= most / 2 or len(old) == 1 else max(FEWEST, most // 8), most)
    for name in base.sizes:
        found[name] = _placed(asked[name], (old[0], old[-1]), (new[0], new[-1]), count)
    return found | ({"batch_sizes": new} if "batch_sizes" in changes else {})


def _placed(value: Any, old: tuple[int, int], new: tuple[int, int], count: int) -> Any:
    """Batch sizes, or one, in the place between the ends `new` that they have between `old`, on a logarithmic axis."""
    if isinstance(value, tuple):
        return tuple(sorted({_placed(one, old, new, count) for one in value}))
    place = math.log(value / old[0]) / math.log(old[1] / old[0]) if old[1] > old[0] else 1.0
    return min(count, max(FEWEST, round(new[0] * (new[1] / new[0]) ** place)))


def matched(base: Any, settings: Any, changes: Mapping[str, Any], known: Known) -> dict[str, float]:
    """The training losses at which runs stop: the shares of the initial loss that those of `base` are of chance among ten
    classes, to two digits. Raises `UsageError` where the initial loss is no positive number."""
    found = {}
    for name in MATCHED:
        value = getattr(base, name, None)
        if value is None or name in changes:
            continue
        first = known.initial_loss(start_of(settings))
        if not 0 < first < math.inf:
            raise UsageError(f"the initial loss is {first:g}, of which no share can be met; give one with --set {name}=...")
        found[name] = float(f"{first * value / CHANCE:.2g}")
    return found


def start_of(settings: Any) -> RunConfig:
    """A run whose initial loss is that of every run of the settings, whatever their batch sizes, rates and optimizers."""
    return settings.run(batch_size=settings.norm_batch or FEWEST, lr=1.0, optimizer=Optimizer.SGD, momentum=0.0, weight_decay=0.0,
                        budget=Budget.STEPS, steps=1, epochs=None, train_loss=None, max_epochs=None, patience=None)
