"""Histories: one table of a study's rows, or, for more rows than fit into memory, Parquet written a batch at a time.

`export` writes three files: `history.parquet`, every row; `cells.parquet`, one row per cell, which is a configuration
without its seed; `curves.parquet`, one row per cell, kind and step, with the number, mean and standard deviation (n - 1)
over seeds of each measured column. Rows are in order of cells; missing is null, and a run that ended early, as a diverged
one does, is in the rows up to its end: the numbers say how many were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import Record
from experiments.lab.store.files import writing
from experiments.lab.store.history import Columns, history
from experiments.lab.store.records import Store

GIVEN = ("examples", "epoch", "lr")
"""columns that every run of a cell has alike at a step"""
MEASURED = ("loss", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
ROWS = 1 << 19
"""rows held at once, except for the last cell's; also those of a row group"""

Floats = NDArray[np.float64]
Cell = tuple[tuple[Any, ...], list[Record]]


def frame(store: Store, records: Sequence[Record]) -> pd.DataFrame:
    """The histories of `records` as one table, each up to the step its run ended at."""
    found = [_until_its_end(store, record) for record in records]
    if not found:
        return pd.DataFrame()
    names = dict.fromkeys(name for columns in found for name in columns.numbers)
    ids = np.array([record.config.run_id for record in records], object)
    kinds = [np.array(columns.kinds, object)[columns.kind] for columns in found]
    numbers = {name: np.concatenate([_numbers(columns, name) for columns in found]) for name in names}
    return pd.DataFrame({"run_id": np.repeat(ids, [len(k) for k in kinds]), "kind": np.concatenate(kinds), **numbers})


def export(store: Store, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the three files below `folder`; memory does not grow with the rows. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.parquet" for name in ("cells", "history", "curves")]
    drafts = [path.with_name(f".{path.name}.tmp") for path in paths]
    cells = _cells(records)
    with writing(folder):
        pq.write_table(_cell_table(cells), drafts[0])
        with ExitStack() as stack:
            names: Any = ["run_id", "cell", "kind"]  # Arrow's stubs know True and False alone
            writers = [stack.enter_context(pq.ParquetWriter(draft, schema, use_dictionary=names))
                       for draft, schema in zip(drafts[1:], (HISTORY, CURVES), strict=True)]
            beside = stack.enter_context(ThreadPoolExecutor(1))  # writing is Arrow's, reading Python's: both cores work
            under_way: list[Future[None]] = []
            for batch in _batches(store, cells):
                for table in under_way:
                    table.result()
                under_way = [beside.submit(writer.write_table, table) for writer, table in zip(writers, batch, strict=True)]
            for table in under_way:
                table.result()
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)
    return paths


def _until_its_end(store: Store, record: Record) -> Columns:
    return history(store, record).until(record.values.get("steps"))


def _numbers(columns: Columns, name: str) -> NDArray[Any]:
    found = columns.numbers.get(name)
    return np.full(len(columns.kind), np.nan) if found is None else found


def _cells(records: Sequence[Record]) -> list[Cell]:
    """The records by all fields of their configurations but the seed, in order of first appearance."""
    cells: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        cells.setdefault(tuple((record.config.full_dict() | {"seed": 0}).values()), []).append(record)
    return list(cells.items())


def _name(cell: Cell) -> str:
    """The run id of the cell's seed 0, which need not exist."""
    return cell[1][0].config.replace(seed=0).run_id


def _cell_table(cells: Sequence[Cell]) -> pa.Table:
    configs = [cell[1][0].config for cell in cells]
    types = {f.name: _ARROW.get(str(f.type).split(" |")[0], pa.string()) for f in dataclasses.fields(RunConfig)}
    fields = {name: pa.array([getattr(c, name) for c in configs], kind) for name, kind in types.items() if name != "seed"}
    head = {"cell": pa.array([_name(c) for c in cells], pa.string()), "runs": pa.array([len(c[1]) for c in cells], pa.int64())}
    return pa.table(head | fields)


def _batches(store: Store, cells: Sequence[Cell]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Rows and curves of as many whole cells as make `ROWS` rows."""
    ids: list[str] = []
    names: list[str] = []
    of_cell: list[int] = []
    found: list[Columns] = []
    rows = 0
    for cell in cells:
        for record in cell[1]:
            found.append(_until_its_end(store, record))
            ids.append(record.config.run_id)
            of_cell.append(len(names))
            rows += len(found[-1].kind)
        names.append(_name(cell))
        if rows >= ROWS:
            yield _tables(found, ids, names, of_cell)
            ids, names, of_cell, found, rows = [], [], [], [], 0
    if found:
        yield _tables(found, ids, names, of_cell)


def _tables(found: Sequence[Columns], ids: list[str], names: list[str], of_cell: list[int]) -> tuple[pa.Table, pa.Table]:
    lengths = np.array([len(columns.kind) for columns in found])
    kinds = tuple(sorted({kind for columns in found for kind in columns.kinds}))
    codes = {columns.kinds: np.array([kinds.index(kind) for kind in columns.kinds], np.int8) for columns in found}
    kind = np.concatenate([codes[columns.kinds][columns.kind] for columns in found])
    numbers = {
        name: np.concatenate([_numbers(columns, name) for columns in found])
        for name in ("step", *GIVEN, *MEASURED)
        if any(name in columns.numbers for columns in found)
    }
    run = np.repeat(np.arange(len(ids), dtype=np.int32), lengths)
    cell = np.repeat(np.array(of_cell, np.int32), lengths)
    head = {"run_id": pa.DictionaryArray.from_arrays(run, ids), "kind": pa.DictionaryArray.from_arrays(kind, kinds)}
    return _table(HISTORY, head | numbers), _curves(cell, names, kind, kinds, numbers)


def _curves(cell: NDArray[np.int32], names: list[str], kind: NDArray[np.int8], kinds: tuple[str, ...],
            numbers: dict[str, NDArray[Any]]) -> pa.Table:
    """One row a (cell, kind, step)."""
    step = numbers["step"]
    span = int(step.max(initial=0)) + 1
    key = (cell.astype(np.int64) * len(kinds) + kind) * span + step
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    size = np.diff(np.r_[first, len(key)])
    group, at = np.repeat(np.arange(len(first)), size), order[first]
    found: dict[str, Any] = {
        "cell": pa.DictionaryArray.from_arrays(cell[at], names),
        "kind": pa.DictionaryArray.from_arrays(kind[at], kinds),
        "step": step[at],
        **{name: numbers[name][at] for name in GIVEN if name in numbers},
    }
    for name in MEASURED:
        if name in numbers:
            n, mean, sd = _moments(numbers[name][order], first, group)
            found |= {f"{name}_n": n.astype(np.int32), f"{name}_mean": mean, f"{name}_sd": sd}
    return _table(CURVES, found)


def _moments(values: Floats, first: NDArray[np.intp], group: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """Number, mean and standard deviation of what is not missing in each group; NaN where there is none (or one)."""
    missing = np.isnan(values)
    some = bool(missing.any())
    n = np.add.reduceat((~missing).astype(np.float64), first)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(missing, 0.0, values) if some else values, first) / n
        off = values - mean[group]
        if some:
            off[missing] = 0.0
        sd = np.sqrt(np.add.reduceat(np.square(off, out=off), first) / (n - 1))
    sd[n < 2] = np.nan
    return n, mean, sd


def _table(schema: pa.Schema, found: dict[str, Any]) -> pa.Table:
    """Arrays as a table of `schema`, NaN as null, a column that is not there as nulls."""
    rows = len(next(iter(found.values())))
    columns = []
    for field in schema:
        values = found.get(field.name)
        if values is None:
            columns.append(pa.array(np.zeros(rows, np.int32)) if field.name.endswith("_n") else pa.nulls(rows, field.type))
        else:
            columns.append(values if isinstance(values, pa.Array) else pa.array(values, field.type, from_pandas=True))
    return pa.Table.from_arrays(columns, schema=schema)


_ARROW = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
_NAME = pa.dictionary(pa.int32(), pa.string())
_KIND = pa.dictionary(pa.int8(), pa.string())
_GIVEN = [("step", pa.int64()), ("examples", pa.int64()), ("epoch", pa.float64()), ("lr", pa.float64())]
HISTORY = pa.schema([("run_id", _NAME), ("kind", _KIND), *_GIVEN, *((name, pa.float64()) for name in MEASURED)])
CURVES = pa.schema([
    ("cell", _NAME), ("kind", _KIND), *_GIVEN,
    *((f"{name}_{what}", kind) for name in MEASURED
      for what, kind in (("n", pa.int32()), ("mean", pa.float64()), ("sd", pa.float64()))),
])
