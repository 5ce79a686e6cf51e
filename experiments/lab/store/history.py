"""A run's history as columns, so that analysis copies what it would otherwise parse.

While a run goes on, `history.jsonl` grows by a line per row. When the run is recorded, the same rows are written once more,
as `history.safetensors`: one array per name, all of one length, in the order of the rows. Needs numpy alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.lab.declare.study import Record
from experiments.lab.store.files import REPAIR, StoreError
from experiments.lab.store.records import Store

COLUMNS = "history.safetensors"
EXACT = 2**53
"""integers up to here are exact in float64"""
_DTYPES = {"F64": np.dtype("<f8"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}


@dataclass(frozen=True)
class Columns:
    """The rows of one history.

    `numbers`: int64 [rows] where every row has an integer, else float64 [rows] with NaN where a row has null or nothing
    (JSON has no NaN, so that nothing else reads so). `kind` [rows]: indices of `kinds`.
    """

    kinds: tuple[str, ...]
    kind: NDArray[np.uint8]
    numbers: dict[str, NDArray[Any]]

    def until(self, step: int | None) -> Columns:
        """Only the rows up to `step`: the stop rule looks ahead and returns."""
        if step is None or not len(self.kind) or self.numbers["step"].max() <= step:
            return self
        kept = self.numbers["step"] <= step
        return Columns(self.kinds, self.kind[kept], {name: values[kept] for name, values in self.numbers.items()})


def columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """`rows` as columns; raises ValueError for a value that a column cannot hold exactly."""
    kinds = tuple(dict.fromkeys(str(row["kind"]) for row in rows))
    code = {kind: index for index, kind in enumerate(kinds)}
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    return Columns(kinds,
                   np.array([code[row["kind"]] for row in rows], np.uint8),
                   {name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: Sequence[Any]) -> NDArray[Any]:
    types = {type(value) for value in values}
    if not types <= {int, float, type(None)}:
        raise ValueError(f"the history's {name} is neither a number nor missing in every row")
    if types == {int}:
        return np.array(values, np.int64)
    if any(type(value) is int and abs(value) > EXACT for value in values):
        raise ValueError(f"the history's {name} holds an integer that float64 cannot")
    return np.array([np.nan if value is None else value for value in values], np.float64)


def columns_of(path: Path) -> bytes | None:
    """What to write beside `history.jsonl`; None where its rows are no columns, and are then read as they are."""
    try:
        return pack(columns([json.loads(line) for line in path.read_bytes().splitlines()]))
    except (ValueError, OverflowError, KeyError):
        return None


def pack(found: Columns) -> bytes:
    """The content of `history.safetensors`."""
    from safetensors.numpy import save

    return save({"kind": found.kind, **found.numbers}, metadata={"kinds": json.dumps(found.kinds)})


def unpack(content: bytes) -> Columns:
    """The columns that `pack` wrote, without copies; raises ValueError for anything else."""
    start = 8 + int.from_bytes(content[:8], "little")
    kinds, layout = _layout(content[8:start])
    arrays = {name: np.frombuffer(content, dtype, rows, start + offset) for name, dtype, rows, offset in layout}
    return Columns(kinds, arrays.pop("kind"), arrays)


@functools.lru_cache(maxsize=1024)
def _layout(header: bytes) -> tuple[tuple[str, ...], tuple[tuple[str, np.dtype[Any], int, int], ...]]:
    """Kinds, and name, type, length and place of each column; most runs of a study share a header."""
    try:
        entries = json.loads(header)
        kinds = tuple(json.loads(entries.pop("__metadata__")["kinds"]))
        return kinds, tuple(
            (name, _DTYPES[entry["dtype"]], entry["shape"][0], entry["data_offsets"][0]) for name, entry in entries.items()
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a history's columns ({error!r})") from error


def history(store: Store, record: Record) -> Columns:
    """The history of a finished run, from its columns, or from its rows where it has none (older records).

    Raises `StoreError` where it is damaged.
    """
    run_id = record.config.run_id
    content = store.recorded(run_id, COLUMNS, record.values) if COLUMNS in record.values.get("files", {}) else None
    try:
        return columns(store.history(run_id)) if content is None else unpack(content)
    except (ValueError, OverflowError, KeyError) as error:
        raise StoreError(f"the history of run {run_id} is damaged ({error}); {REPAIR}") from error
