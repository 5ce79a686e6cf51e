"""Tables from elsewhere: the trials that Shallue et al. (2019) published, read for the same figures as our own runs.

Their archive, unpacked, is a folder per trial (google-research/batch_science; its README says what each field means):

    [GROUP/]DATASET/MODEL/OPTIMIZER/BATCH_SIZE/study.json
                                               TRIAL/metadata.json      status, tuned parameters
                                               TRIAL/measurements.csv   step, val/classification_error, ...

A workload is a data set, a model and an optimizer. Its goal is the one that the authors' notebook draws Figure 1 with, where it
names the workload, or what is asked for (`--goal`); else the best error that every batch size reaches, rounded up to the next
number of two digits. As in the paper, the best trial of a batch size is the complete one that is below the goal after the fewest
steps (ties: the smaller trial number). Trials that never are below it, were left incomplete or diverged are counted. The best of
many trials, each trained once, is no sample: there are effects, but no intervals, and so no verdicts.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.load import CORRECT, HISTORY, MEASUREMENTS, RUNS, Tables
from analysis.tables import DASH, Table
from analysis.verdicts import Verdict
from experiments.lab.declare.claims import Kind
from experiments.lab.declare.study import Figure, Study
from experiments.lab.store.files import StoreError

SOURCE = "foreign"
DEPTH, SNIFFED = 5, 10_000
"""folders between the root and a study.json, and how many are looked into before a folder is taken for something else"""
METRICS = ("val/classification_error", "val/average_precision", "val/cross_entropy_error")
"""what a goal may be of, the first that is there first"""
LARGER_IS_BETTER = {"val/average_precision"}
GOALS = {
    ("mnist", "simple_cnn_base"): (METRICS[0], 0.01),
    ("fashion_mnist", "simple_cnn_base"): (METRICS[0], 0.1),
    ("cifar_10", "resnet_8"): (METRICS[0], 0.3),
    ("imagenet", "resnet_50"): (METRICS[0], 0.25),
    ("imagenet", "vgg_11"): (METRICS[0], 0.35),
    ("open_images_v4", "resnet_50"): (METRICS[1], 0.31),
    ("lm1b", "transformer_base"): (METRICS[2], 3.9),
    ("lm1b", "lstm"): (METRICS[2], 3.9),
    ("common_crawl", "transformer_base"): (METRICS[2], 3.9),
}
"""of Figure 1, as the authors' notebook reproduce_paper_plots.ipynb has them"""
STATUS = {"COMPLETE": "done", "INCOMPLETE": "incomplete", "INFEASIBLE": "diverged"}
SAME = math.log(1.25)
"""the study's margin for ratios"""
ABOUT = (
    "These are other people's records, not runs of this project: the trials published with Shallue et al. (2019), JMLR 20(112). "
    "A batch size counts with its best tuned trial, which was trained once."
)


@dataclass(frozen=True)
class Trial:
    number: int
    status: str
    """done, incomplete or diverged"""
    lr: float | None
    momentum: float | None
    best: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """metric -> (steps, values) of the rows that were better than every row before; empty where it was not measured"""

    def below(self, goal: Goal) -> int | None:
        """Steps after which the trial was first strictly better than the goal; None where it never was, or is not complete."""
        if self.status != "done" or goal.metric not in self.best:
            return None
        steps, values = self.best[goal.metric]
        good = values > goal.value if goal.metric in LARGER_IS_BETTER else values < goal.value
        return int(steps[good][0]) if good.any() else None


@dataclass(frozen=True)
class Goal:
    metric: str
    value: float
    rule: str
    """where it is from, in words"""

    def __str__(self) -> str:
        return f"{self.metric} {'above' if self.metric in LARGER_IS_BETTER else 'below'} {self.value:g}"


@dataclass(frozen=True)
class Search:
    """All trials of one workload at one batch size, and the first to reach the workload's goal."""

    dataset: str
    model: str
    optimizer: str
    batch_size: int
    trials: tuple[Trial, ...]
    goal: Goal | None = None
    """none: no metric that a goal may be of was measured"""

    @property
    def workload(self) -> str:
        return f"{self.dataset}, {self.model}, {self.optimizer}"

    def reached(self) -> list[tuple[int, Trial]]:
        """Steps and trial, the best first."""
        if self.goal is None:
            return []
        found = [(steps, trial) for trial in self.trials if (steps := trial.below(self.goal)) is not None]
        return sorted(found, key=lambda pair: (pair[0], pair[1].number))

    def count(self, status: str) -> int:
        return sum(trial.status == status for trial in self.trials)


def is_foreign(root: Path) -> bool:
    """Whether a folder holds such tables; cheap where it does not."""
    return root.is_dir() and not (root / "runs").is_dir() and next(_found(islice(_folders(root), SNIFFED)), None) is not None


def read(root: Path, goal: float | None = None) -> tuple[list[Search], list[str]]:
    """Every search below `root`, by workload and batch size, and a sentence for each file that cannot be read: its trial, or
    search, is left out. `goal` is asked for of every workload, in the metric that it has. Raises `StoreError` where nothing can
    be read."""
    faults: list[str] = []
    found: list[Search] = []
    for folder in _found(_folders(root)):
        try:
            found.append(_search(root, folder, faults))
        except StoreError as error:
            faults.append(str(error))
    if not found:
        why = faults[0] if faults else "no study.json"
        raise StoreError(f"nothing below {root} can be read ({why}); unpack the archive anew")
    with_goals = [dataclasses.replace(s, goal=_goal(own, goal)) for own in _by_model(found).values() for s in own]
    return sorted(with_goals, key=lambda s: (s.workload, s.batch_size)), faults


def table(found: Sequence[Search]) -> Table:
    """One row per workload and batch size; what is not known is a dash."""
    rows = []
    for search in found:
        reached = search.reached()
        steps, best = reached[0] if reached else (None, None)
        rows.append((
            search.dataset, search.model, search.optimizer, str(search.batch_size), str(search.goal or DASH),
            str(len(search.trials)), str(search.count("incomplete")), str(search.count("diverged")), str(len(reached)),
            _number(steps), _number(None if steps is None else steps * search.batch_size),
            *(_number(value) for value in ((best.lr, best.momentum, best.number) if best else (None, None, None))),
        ))
    columns = ("data set", "model", "optimizer", "B", "goal", "trials", "incomplete", "diverged", "reached the goal",
               "fewest updates to it", "examples", "LR", "momentum", "trial")
    return Table("steps_to_goal", f"{ABOUT} {' '.join(_rules(found))}", columns, tuple(rows))


def tables(found: Sequence[Search], study: Study, scale: str) -> Tables:
    """The best trials as the tables that figures are drawn from, with the figures that they have something for. Config fields of
    which the records say nothing are missing, seeds too."""
    rows = [
        {"study": study.name, "scale": scale, "stage": "best", "status": "done", "dataset": s.dataset, "model": s.model,
         "run_id": f"{s.dataset}/{s.model}/{s.optimizer}/{s.batch_size}/{best.number}", "optimizer": s.optimizer,
         "batch_size": s.batch_size, "lr": best.lr, "momentum": best.momentum, "steps": steps, "examples": steps * s.batch_size}
        for s in found for steps, best in s.reached()[:1]
    ]
    nullable = {name: {"int64": "Int64", "bool": "boolean"}.get(kind, kind) for name, kind in RUNS.items()}
    history, measurements, correct = (pd.DataFrame(columns=list(names)) for names in (HISTORY, MEASUREMENTS, CORRECT))
    own = dataclasses.replace(study, figures=_figures(found), claims=(), paper=(), comparisons=())
    runs = pd.DataFrame(rows).reindex(columns=list(RUNS)).astype(cast(Any, nullable))
    return Tables(study=own, scale=scale, source=SOURCE, planned=(), pending=0, missing_measurements=0, runs=runs,
                  history=history, measurements=measurements, correct=correct)


def verdicts(found: Sequence[Search], study: Study, scale: str) -> list[Verdict]:
    """The study's claims about steps and examples, of each workload: the effects where it has the batch sizes, and no verdict."""
    curves: dict[str, dict[int, int]] = {}
    for search in found:
        curve = curves.setdefault(search.workload, {})
        if (reached := search.reached()) and reached[0][0] > 0:
            curve[search.batch_size] = reached[0][0]
    answers = []
    for workload, steps in curves.items():
        sizes, log = sorted(steps), {size: math.log(at) for size, at in steps.items()}
        few = sizes[0] if sizes else None
        more = next((size for size in sizes[1:-1] if size >= 4 * sizes[0]), None)
        if few is not None and more is not None:
            effect = log[more] - log[few] + math.log(more / few)
            answers.append((workload, "perfect-scaling", Kind.EQUIVALENCE, effect,
                            f"perfect scaling at small batches: batch size {more} needs as many examples as {few}, within a "
                            "factor of 1.25"))
        if len(sizes) > 1:
            before, largest = sizes[-2:]
            effect = log[largest] - log[sizes[0]] + math.log(largest / sizes[0])
            answers.append((workload, "diminishing-returns", Kind.DIRECTIONAL, effect,
                            f"diminishing returns: batch size {largest} needs more examples than batch size {few}"))
            answers.append((workload, "maximal-parallelism", Kind.EQUIVALENCE, log[before] - log[largest],
                            f"maximal parallelism: batch size {largest} needs as many steps as {before}, within a factor of "
                            "1.25"))
        else:
            answers.append((workload, "diminishing-returns", Kind.DIRECTIONAL, None,
                            "diminishing returns: larger batch sizes need more examples"))
    for (dataset, model), own in _by_model(found).items():
        plain = curves.get(f"{dataset}, {model}, sgd", {})
        for optimizer in dict.fromkeys(s.optimizer for s in own if "momentum" in s.optimizer):
            other = curves[f"{dataset}, {model}, {optimizer}"]
            if len(sizes := sorted(plain.keys() & other.keys())) > 1:
                saved = [math.log(steps[sizes[0]] / steps[sizes[-1]]) for steps in (other, plain)]
                answers.append((f"{dataset}, {model}, {optimizer}", "momentum-scales-further", Kind.DIRECTIONAL,
                                saved[0] - saved[1],
                                f"from batch size {sizes[0]} to {sizes[-1]} momentum saves more steps than plain "
                                "SGD"))
    return [_verdict(study, scale, *answer) for answer in answers]


def _by_model(found: Sequence[Search]) -> dict[tuple[str, str], list[Search]]:
    """The searches of each data set and model, which have one goal and one figure."""
    together: dict[tuple[str, str], list[Search]] = {}
    for search in found:
        together.setdefault((search.dataset, search.model), []).append(search)
    return together


def _verdict(study: Study, scale: str, workload: str, claim: str, kind: Kind, effect: float | None, sentence: str) -> Verdict:
    once = "other people's records, one best trial for each batch size, trained once: without repeats there is no interval"
    few = "other people's records, in which fewer than two batch sizes reach the goal"
    none: dict[str, Any] = dict.fromkeys((
        "ci_low", "ci_high", "ci90_low", "ci90_high", "ratio_low", "ratio_high", "p_value", "p_adjusted", "p_permutation",
        "both_low", "both_high", "paper_value", "magnitude_agrees",
    ))
    return Verdict(
        study=study.name, scale=scale, claim=f"{workload.replace(', ', '/')}-{claim}", claim_hash="",
        sentence=f"{workload}: {sentence}", primary=False, kind=kind.value, verdict=None,
        decided_by=few if effect is None else once, effect=effect, level=0.95, unit="log ratio", margin=SAME,
        ratio=None if effect is None else math.exp(effect), n_seeds=0 if effect is None else 1, n_seeds_by_group={},
        population="one tuned trial for each batch size", paper_source="the paper's own records", missing=0, diverged=0, runs=[],
        source=SOURCE, **none,
    )


def _figures(found: Sequence[Search]) -> tuple[Figure, ...]:
    """Steps and examples to the goal, and the best learning rates: a figure of each data set and model, a line per optimizer."""
    pairs = list(_by_model(found))
    figures = []
    for dataset, model in pairs:
        name = "" if len(pairs) == 1 else f"_{dataset.replace('/', '_')}_{model}"
        where = (("where", (("dataset", dataset), ("model", model))), ("arm", ("dataset", "model", "optimizer")))
        figures += [
            Figure(f"steps_to_goal{name}", "values_vs_batch",
                   (("values", (("steps", "updates to the goal"), "examples")), ("logarithmic", True), *where)),
            Figure(f"learning_rates{name}", "values_vs_batch",
                   (("values", (("lr", "learning rate of the best trial"),)), ("logarithmic", True), *where)),
        ]
    return tuple(figures)


def _rules(found: Sequence[Search]) -> list[str]:
    """Where the goals are from, each once."""
    rules = {f"{s.dataset}, {s.model}": s.goal for s in found if s.goal is not None}
    return [f"Goal of {name}: {goal} ({goal.rule})." for name, goal in rules.items()]


def _goal(own: Sequence[Search], asked: float | None) -> Goal | None:
    """The goal of a data set and model, for all its optimizers and batch sizes."""
    trials = [trial for search in own for trial in search.trials if trial.status == "done"]
    metric = next((m for m in METRICS if any(m in trial.best for trial in trials)), None)
    if asked is not None and metric is not None:
        return Goal(metric, asked, "as asked for")
    known = GOALS.get((own[0].dataset.removeprefix("batch_science/"), own[0].model))
    if known is not None and any(known[0] in trial.best for trial in trials):
        return Goal(*known, "the authors' notebook")
    if metric is None:
        return None
    larger = metric in LARGER_IS_BETTER
    ends = [[t.best[metric][1][-1] for t in s.trials if t.status == "done" and metric in t.best] for s in own]
    best = [max(values) if larger else min(values) for values in ends if values]
    return Goal(metric, _beyond(min(best) if larger else max(best), larger), "the best that every batch size reaches, two digits")


def _beyond(value: float, larger_is_better: bool) -> float:
    """The next number of two digits that `value` is strictly better than."""
    if value <= 0:
        return 0.01 if not larger_is_better else value - 0.01
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    count = math.ceil(value / unit - 1e-9) - 1 if larger_is_better else math.floor(value / unit + 1e-9) + 1
    return float(f"{count * unit:.12g}")


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders at most `DEPTH` below `root`, in order, each with its files; nothing below a study is looked into."""
    for path, folders, files in os.walk(root):
        deep = len(Path(path).relative_to(root).parts) >= DEPTH
        folders[:] = [] if deep or "study.json" in files else sorted(name for name in folders if not name.startswith("."))
        yield Path(path), files


def _found(folders: Iterator[tuple[Path, list[str]]]) -> Iterator[Path]:
    return (path for path, files in folders if "study.json" in files)


def _search(root: Path, folder: Path, faults: list[str]) -> Search:
    about = _json(folder / "study.json")
    place = folder.relative_to(root).parts
    names = dict(zip(("model", "optimizer", "batch_size"), place[-3:], strict=False)) if len(place) >= 3 else {}
    try:
        dataset = "/".join(place[:-3]) or str(about["dataset"])
        model, optimizer = (str(about.get(name) or names[name]) for name in ("model", "optimizer"))
        size = int(about.get("batch_size") or folder.name)
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{folder}/study.json does not say its {error}") from error
    if size < 1:
        raise StoreError(f"{folder}/study.json has a batch size of {size}")
    trials = []
    for path in sorted((p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name)):
        try:
            trials.append(_trial(path))
        except StoreError as error:
            faults.append(str(error))
    return Search(dataset, model, optimizer, size, tuple(trials))


def _trial(path: Path) -> Trial:
    about = _json(path / "metadata.json")
    status = STATUS.get(str(about.get("status")).upper())
    parameters = about.get("parameters") or {}
    if status is None or not isinstance(parameters, dict):
        raise StoreError(f"{path}/metadata.json has no status of {', '.join(STATUS)} or no parameters")
    lr, momentum = (_float(parameters.get(name)) for name in ("learning_rate", "momentum"))
    return Trial(int(path.name), status, lr, momentum, _records(path / "measurements.csv") if status == "done" else {})


def _records(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`Trial.best` of a file of measurements, whatever the order of its rows."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            names = [name.strip() for name in next(rows, [])]
            columns = dict(zip(names, zip_longest(*rows), strict=False))
    except (OSError, ValueError, csv.Error) as error:
        raise StoreError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    if "step" not in names:
        raise StoreError(f"{path} has no column step")
    found, at = {}, _numbers(columns.get("step", ()))
    for metric in (name for name in METRICS if name in columns):
        values = _numbers(columns[metric])
        order = np.argsort(at, kind="stable")
        order = order[np.isfinite(at[order]) & np.isfinite(values[order])]
        steps, values = at[order].astype(np.int64), values[order]
        worse = -values if metric in LARGER_IS_BETTER else values
        better = np.r_[True, worse[1:] < np.minimum.accumulate(worse)[:-1]] if len(worse) else np.zeros(0, bool)
        if better.any():
            found[metric] = (steps[better], values[better])
    return found


def _numbers(texts: Sequence[str | None]) -> np.ndarray:
    """NaN for what is no number."""
    try:
        return np.array(cast(Any, texts), np.float64)
    except ValueError:
        return pd.to_numeric(pd.Series(cast(Any, texts), dtype=object), errors="coerce").to_numpy(np.float64)


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path} is no JSON object")
    return document


def _float(value: Any) -> float | None:
    """A number as it is recorded; None for anything else, never 0."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
