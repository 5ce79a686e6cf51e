"""Measurements made and recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.lab.declare.config import Machine
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.study import Measure
from experiments.lab.measures.registry import METRICS, Metric
from experiments.lab.measures.subject import Subject, head, load_subject, subset
from experiments.lab.store.records import Store
from sharpness.panels import panel


def perform(store: Store, machine: Machine, measures: Sequence[Measure], run_ids: Sequence[str]) -> None:
    """Make and record those of `measures` of the runs `run_ids` (one, or a pair) that the store lacks."""
    for _ in performing(store, machine, measures, run_ids):
        pass


def performing(
    store: Store, machine: Machine, measures: Sequence[Measure], run_ids: Sequence[str]
) -> Iterator[tuple[int, int, Measure]]:
    """The same, one after the other: what has just been recorded, as the how-manieth of how many."""
    if unknown := [m.metric for m in measures if m.metric not in METRICS]:
        raise ConfigError(f"there is no metric {unknown[0]!r}; the metrics are {', '.join(METRICS)}")
    due = [measure for measure in measures if store.measurement(measure, run_ids) is None]
    subjects = [load_subject(store, run_id, machine) for run_id in run_ids] if due else []
    number = 0
    for number, (wanted, result) in enumerate(_results(subjects, due), 1):
        store.write_measurement(wanted, run_ids, result)
        yield number, len(due), wanted


def _results(subjects: Sequence[Subject], due: Sequence[Measure]) -> Iterator[tuple[Measure, dict[str, Any]]]:
    panels: list[tuple[tuple[int, int], Measure]] = []
    for wanted in due:
        metric = METRICS[wanted.metric]
        if metric.function is not None:
            yield wanted, _of(metric, subjects, dict(wanted.options))
        else:
            options = metric.filled(dict(wanted.options))
            panels.append(((options["examples"], options["seed"]), wanted))
    for (examples, seed), group in itertools.groupby(sorted(panels, key=lambda one: one[0]), key=lambda one: one[0]):
        yield from _from_panel(subjects[0], [wanted for _, wanted in group], examples, seed)


def _of(metric: Metric, subjects: Sequence[Subject], options: dict[str, Any]) -> dict[str, Any]:
    """The measurement; of a user's own task one that has no meaning there says so, as `sharpness.panel` does."""
    try:
        return metric.of(*subjects, **options)
    except ValueError as error:
        subject = subjects[0]
        if subject.data.task.plain and not subject.config.has_own_code:
            raise
        return {**head(subject, options.get("examples", 0), None), "value": None, "status": "not applicable",
                "details": {"sentence": str(error)}}


def _from_panel(
    subject: Subject, wanted: Sequence[Measure], examples: int, seed: int
) -> Iterator[tuple[Measure, dict[str, Any]]]:
    """Metrics of `sharpness.panels` on the same examples, which share the Hessian's operator."""
    by_name = {m.metric: m for m in wanted}
    for entry in panel(subject.model, subject.loss, subset(subject, examples), metrics=list(by_name), examples=examples,
                       weight=subject.data.task.weight, seed=seed):
        facts = {} if entry.result is None else entry.result.to_dict()
        residuals = facts.get("residuals") or [None]
        yield by_name[entry.metric], {
            **head(subject, examples, facts.get("seed")),
            "value": entry.value,
            "standard_error": entry.standard_error,
            "residual": residuals[0],
            "products": facts.get("matvecs", facts.get("evaluations")),
            "status": entry.status,
            "details": facts or {"sentence": entry.sentence},
        }
