"""Every metric of a model in one call, with a budget of minutes on one core."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from sharpness.linalg.consistency import contradictions
from sharpness.metrics import TABLE, Metric, Subject, headline
from sharpness.problem.arguments import check_count, check_seed, shown
from sharpness.problem.batches import Batches, Data, TensorBatches, as_batches, as_whole
from sharpness.problem.calls import ForeignError, as_pair, length_of
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.nested import take
from sharpness.problem.problem import Loss
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result
from sharpness.problem.untouched import Mode


@dataclass(frozen=True, repr=False)
class Measured(Result):
    """One metric of a panel.

    Attributes:
        metric, family: its name and its family in the table.
        value: the one number that stands for the result (the table says which); None without one.
        standard_error: of value, where the metric estimates one.
        seconds: that it took. An operator's recording counts for the first metric that uses it.
        status: the result's own; "not applicable" (it has no meaning for this model, loss or data);
            "nonfinite" (NaN or infinity met); "impossible" (the result's own, or beside an earlier metric of the same
            Hessian it cannot be true: see sentence); or "failed" (an exception: see sentence).
        sentence: why there is no result, or what it contradicts; else None.
        result: what the metric's own function returned, or None.
    """

    metric: str
    family: str
    value: float | None
    standard_error: float | None
    seconds: float
    status: str
    sentence: str | None
    result: Result | None

    def to_dict(self) -> dict[str, Any]:
        """All fields of the result and of this, in one dict. A result whose standard errors are those of
        many values has them under `standard_errors`."""
        own = super().to_dict()
        facts = own.pop("result") or {}
        if isinstance(facts.get("standard_error"), list):
            facts["standard_errors"] = facts.pop("standard_error")
        return facts | own


def choose(metrics: str | Sequence[str]) -> tuple[Metric, ...]:
    """The entries of the table that "all" or the names in `metrics` stand for, in the table's order.

    Raises ValueError for a name that is not in it.
    """
    if not isinstance(metrics, (str, list, tuple)) or not all(isinstance(name, str) for name in metrics):
        raise ValueError(f"metrics is {shown(metrics)}: pass 'all', a name, or a list of names")
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    known = [metric.name for metric in TABLE]
    if unknown := [name for name in names if name != "all" and name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 3, 0.4) or known[:3]
        raise ValueError(f"there is no metric {unknown[0]!r}: choose all, or of {len(known)} such as {', '.join(near)}")
    if not names:
        raise ValueError(f"metrics is empty: pass 'all' or some of {', '.join(known)}")
    return tuple(metric for metric in TABLE if "all" in names or metric.name in names)


def panel(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    metrics: str | Sequence[str] = "all",
    examples: int | None = None,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> Iterator[Measured]:
    """Measure the metrics of the table one after the other, and yield each as soon as it is there.

    Each is measured with the radius, number of probes and steps stated in the table, on examples of `data`,
    at most as many as the table states: estimates for an overview, of which each has a function
    of its own with more options and more precision. Metrics of the Hessian share one operator, recorded once.
    A metric without meaning here (accuracy for a regression, per-example gradients with batch statistics)
    is yielded as "not applicable", with the reason. Of more examples than are wanted, random ones are taken, always the
    same: of tensors, of a list of batches of tensors, and of a DataLoader that does not shuffle. Of other data they are the
    first, which mislead where the data are sorted: shuffle them.

    Args:
        metrics: "all", or names; they are measured in the table's order.
        examples: for all metrics instead of the table's numbers; None: the table's.
        seed: of all that is drawn; the same for each metric.
        progress: passed on to each metric's own function; how long they will take, says `cost_estimate`.
        model, loss, data, params, batch_size, mode, weight: as in `hessian`. Data in batches stay in these, of which the
            last one taken may be cut, unless the model takes nothing less (a graph).

    Raises:
        ValueError: an unknown name, or wrong input (see `make_problem`), at the call; what a metric refuses
            in spite of that is "not applicable", another exception "failed". Running out of memory ends the panel.
    """
    chosen = choose(metrics)
    Meter(progress, "panel")  # refuses what is no progress
    subject_of, _ = subjects(
        model, loss, data, metrics, examples, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed,
        progress=progress,
    )

    def entries() -> Iterator[Measured]:
        subject, key, seen = None, None, list[Result]()
        for metric in chosen:
            start, wanted = time.perf_counter(), (examples or metric.examples, metric.shares)
            if subject is None or key != wanted:
                subject, seen = None, []  # what the last ones shared may be large
                subject, key = subject_of(wanted[0]), wanted
            entry = _measured(metric, subject, start)
            result = entry.result
            if metric.shares and result is not None and entry.status != "nonfinite":
                if said := contradictions(result, *seen):
                    entry = replace(entry, status="impossible", sentence="; ".join(said))
                seen.append(result)
            yield entry

    return entries()


def subjects(
    model: nn.Module,
    loss: Loss,
    data: Data,
    metrics: str | Sequence[str],
    examples: int | None,
    *,
    progress: Progress = None,
    **options: Any,
) -> tuple[Callable[[int], Subject], int]:
    """(examples) -> what metrics are measured on, so many, and how many there are of those that a metric may ask for;
    everything that can be wrong is wrong here."""
    chosen = choose(metrics)
    if examples is not None:
        check_count("examples", examples, "128 (or None for the table's)")
    check_seed(options["seed"])
    taken, whole, there = _taken(model, loss, data, examples or max(metric.examples for metric in chosen), options)

    def subject_of(count: int) -> Subject:
        few = taken if whole else _first(taken, options["batch_size"], count, options["seed"])
        return Subject(make_problem(model, loss, few, **options), few, options["batch_size"], options["weight"], progress)

    return subject_of, there


def _taken(model: nn.Module, loss: Loss, data: Data, count: int, options: dict[str, Any]) -> tuple[Data, bool, int]:
    """So many examples, and False; or whole batches, and True, where the model takes nothing less (a graph); and how many."""
    first = partial(_first, data, options["batch_size"], count, options["seed"])
    try:
        few = first()
        return few, False, make_problem(model, loss, few, **options).examples
    except (ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        try:
            pair = as_whole(data) is not None
            batches = data if pair else first(cut=False)
            return batches, True, make_problem(model, loss, batches, **options).examples
        except (ValueError, RuntimeError):
            raise error from None


def _measured(metric: Metric, subject: Subject, start: float) -> Measured:
    result, sentence, status = None, None, "nonfinite"
    value = error = None
    try:
        result = metric.measure(subject, **metric.options)
        value, error = headline(result)
        status = str(getattr(result, "status", "ok"))
    except ForeignError as failure:
        sentence, status = str(failure), "failed"
    except ValueError as refused:
        sentence, status = str(refused), "not applicable"
        if sentence.startswith(("loss is nan", "loss is inf", "loss is -inf", "a product is not finite")):
            status = "nonfinite"
        elif "not symmetric" in sentence or sentence.startswith(("second derivatives are off", "the gradient is off")):
            status = "failed"
    except FloatingPointError as met:
        sentence = str(met)
    except MemoryError:
        raise
    except Exception as failure:  # one metric that fails must not cost the results of the others
        if isinstance(failure, torch.OutOfMemoryError):
            raise
        sentence, status = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}", "failed"
    seconds = time.perf_counter() - start
    return Measured(metric.name, metric.family, value, error, seconds, status, sentence, result)


def _first(data: Data, batch_size: int | None, count: int, seed: int, *, cut: bool = True) -> Data:
    """`count` examples, as the pair or the list of batches that they come in: random ones where they can be chosen, else the
    first; of the last batch only as many as are missing, or all with `cut` False."""
    with torch.random.fork_rng(devices=[]):  # a shuffling loader draws from the global generator
        torch.default_generator.manual_seed(seed)
        batches, taken = as_batches(data, batch_size), []
        if isinstance(batches, TensorBatches):
            return batches.taken(_draw(batches.examples, count))
        for batch in _mixed(batches, count) if cut else batches:
            length = length_of(*as_pair(batch))
            taken.append(_part(batch, torch.arange(count), length) if cut and length > count else batch)
            count -= length
            if count <= 0:
                break
    return taken


def _draw(examples: int, count: int) -> Tensor:
    """Which of the examples are taken, ascending: all, or `count` random ones, always the same."""
    if count >= examples:
        return torch.arange(examples)
    return torch.from_numpy(np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(examples)[:count]))


def _mixed(batches: Batches, count: int) -> Batches:
    """Batches whose first `count` examples are random ones of all, where they can be chosen without reading the others."""
    if type(batches) is DataLoader and isinstance(batches.sampler, SequentialSampler) and batches.batch_size is not None:
        index = _draw(len(batches.sampler), count).tolist()
        if len(index) == len(batches.sampler):
            return batches
        return DataLoader(batches.dataset, batches.batch_size, sampler=index, collate_fn=batches.collate_fn)
    if not (isinstance(batches, (list, tuple)) and all(_is_plain(batch) for batch in batches)):
        return batches
    lengths = [len(targets) for _, targets in batches]
    if sum(lengths) <= count or len({(inputs.shape[1:], targets.shape[1:]) for inputs, targets in batches}) > 1:
        return batches
    index, start, parts = _draw(sum(lengths), count), 0, []
    for (inputs, targets), length in zip(batches, lengths, strict=True):
        own = index[(index >= start) & (index < start + length)] - start
        parts.append((inputs[own.to(inputs.device)], targets[own.to(targets.device)]))
        start += length
    return list(TensorBatches(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), lengths[0]))


def _is_plain(batch: Any) -> bool:
    """Whether a batch is inputs and targets, each one dense tensor with a row per example."""
    return isinstance(batch, (list, tuple)) and len(batch) == 2 and all(
        isinstance(part, Tensor) and part.ndim > 0 and part.layout == torch.strided and not part.is_nested for part in batch
    ) and len(batch[0]) == len(batch[1])


def _part(batch: Any, index: Tensor, length: int) -> Any:
    """A batch of those examples: a mapping, or (inputs, targets) with or without weights."""
    return take(batch, index, length) if isinstance(batch, Mapping) else tuple(take(part, index, length) for part in batch)
