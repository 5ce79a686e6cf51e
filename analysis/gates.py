"""Gates: conditions without which a comparison says nothing. Each returns why it failed, or None."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.cells import Cell, values_of
from analysis.load import SUMMARY, Planned, Tables
from experiments.lab.declare.claims import Claim, Gate, ValueScale
from experiments.lab.declare.config import RunConfig
from experiments.lab.store.records import IN_WORDS

CONVERGED = ("converged", "ok", "precision")
"""statuses of a measurement that stands; `precision` is as exact as the products' dtype allows"""

_NOT_TUNED = ("lr", "seed", "n_train", "n_validation", "parent")
"""config fields in which a tuned run may differ from the runs of its grid"""


def failed_gate(claim: Claim, cells: Sequence[Cell], tables: Tables) -> str | None:
    """The first failed gate in a sentence: what no comparison survives, then the claim's own gates in declared order."""
    checks = [_diverged(claim, cells), _usable(claim, cells), _positive(claim, cells)]
    checks += [_check(gate, cells, tables) for gate in claim.gates]
    return next((reason for reason in checks if reason is not None), None)


def _check(gate: Gate, cells: Sequence[Cell], tables: Tables) -> str | None:
    match gate.kind:
        case "min_seeds":
            return _min_seeds(gate, cells)
        case "matched":
            return _matched(gate, cells, tables)
        case "status":
            return _status(gate, cells)
        case "converged":
            return _converged(gate, cells, tables)
        case "edge_lr":
            return _edge_lr(cells, tables)
    raise ValueError(f"there is no gate {gate.kind!r}; see experiments.lab.declare.claims.Gate")


def _diverged(claim: Claim, cells: Sequence[Cell]) -> str | None:
    """A family's statistic says what a diverged run means to it: NaN where it cannot do without."""
    count = sum(cell.diverged for cell in cells)
    if claim.diverged_as is not None or claim.contrast.family is not None or not count:
        return None
    return f"{count} of {_runs(cells)} runs diverged and the claim gives no value to count them with"


def _usable(claim: Claim, cells: Sequence[Cell]) -> str | None:
    """Runs may lack a value only where a gate limits how many, `status` or (of measurements) `converged`; families never."""
    count, name = sum(cell.unusable for cell in cells), claim.contrast.value
    if count and claim.contrast.family is not None:
        return f"{count} of {sum(cell.expected for cell in cells)} families have no {claim.contrast.family.statistic} of {name}"
    limited = {"status"} if name in SUMMARY else {"converged"}
    if not count or limited & {gate.kind for gate in claim.gates}:
        return None
    return f"{count} of {_runs(cells)} runs have no {name}"


def _positive(claim: Claim, cells: Sequence[Cell]) -> str | None:
    if claim.contrast.scale is not ValueScale.LOG:
        return None
    count = sum(value <= 0 for cell in cells for value in cell.values)
    return f"{count} values of {claim.contrast.value} are not positive, so they have no logarithm" if count else None


def _min_seeds(gate: Gate, cells: Sequence[Cell]) -> str | None:
    for cell in cells:
        if cell.n < gate.limit:
            what = "seeds with a value" if cell.population is None else "clusters of runs"
            return f"{cell.name} has {cell.n} {what}, fewer than {gate.limit:g}"
    return None


def _matched(gate: Gate, cells: Sequence[Cell], tables: Tables) -> str | None:
    """Geometric means agree within the factor 1 + limit."""
    name = gate.value or "train_loss"
    known = values_of(name, tables)
    groups = [[x for run_id in cell.run_ids if (x := known.get(run_id)) is not None] for cell in cells]
    if not all(groups) or min(x for group in groups for x in group) <= 0:
        return f"{name} is not known and positive in every group, so it cannot be compared"
    means = [math.exp(math.fsum(map(math.log, group)) / len(group)) for group in groups]
    if max(means) <= (1 + gate.limit) * min(means):
        return None
    return f"{name} differs between the groups by a factor of {max(means) / min(means):.3g}, more than {1 + gate.limit:g}"


def _status(gate: Gate, cells: Sequence[Cell]) -> str | None:
    """At most the fraction `limit` of runs is neither done nor diverged."""
    other = [status for cell in cells for status in cell.statuses if status not in ("done", "diverged")]
    if len(other) <= gate.limit * _runs(cells):
        return None
    ended = ", ".join(sorted({IN_WORDS.get(status, status) for status in other}))
    return f"{len(other)} of {_runs(cells)} runs did not end as planned ({ended})"


def _converged(gate: Gate, cells: Sequence[Cell], tables: Tables) -> str | None:
    ids = {run_id for cell in cells for run_id in cell.run_ids}
    rows = tables.measurements[(tables.measurements["metric"] == gate.value) & tables.measurements["run_id"].isin(ids)]
    bad = int((~rows["status"].isin(CONVERGED) | rows["value"].isna()).sum())
    if rows.empty:
        return f"no measurement of {gate.value} is known, so none is known to have converged"
    if bad <= gate.limit * len(rows):
        return None
    return f"{bad} of {len(rows)} measurements of {gate.value} did not converge"


def _edge_lr(cells: Sequence[Cell], tables: Tables) -> str | None:
    """No run's learning rate is the smallest or largest that earlier stages tried for it."""
    for cell in cells:
        for config in cell.configs:
            grid = _grid(config, tables.planned)
            if len(grid) < 3:
                return f"{cell.name} has no grid of learning rates to judge its optimum by"
            if config.lr in (min(grid), max(grid)):
                return f"the learning rate {config.lr:g} of {cell.name} stands on the edge of its grid"
    return None


def _grid(config: RunConfig, planned: Sequence[Planned]) -> set[float]:
    """Learning rates of earlier stages' runs that are `config` except for its seed, split and learning rate; what a later stage
    trains on purpose at another rate is no grid."""
    first = next((i for i, p in enumerate(planned) if p.config == config), 0)
    own = {p.stage for p in planned[first : first + 1]}

    def key(c: RunConfig) -> dict[str, object]:
        return {name: value for name, value in c.full_dict().items() if name not in _NOT_TUNED}

    return {p.config.lr for p in planned[:first] if p.stage not in own and key(p.config) == key(config)}


def _runs(cells: Sequence[Cell]) -> int:
    return sum(cell.planned for cell in cells)
