"""Where a user's own data lie now: their folder may move, the hash of their content stays.

`<store>/data.json` holds the last place of each content, for this machine alone: it is never exported or published, and where it
is missing or damaged nothing is known.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from experiments.lab.datasets import DataError, candidates, identity, in_files
from experiments.lab.declare.config import RunConfig
from experiments.lab.store.files import StoreError, to_json, write_atomic
from experiments.lab.store.records import Store

SHOWN = 8
"""places named in a message"""
Seen = dict[str, dict[str, str]]
"""content hash -> the `name` it was asked for by and its `place`, an absolute path"""


def seen(root: Path) -> Seen:
    """What the store at `root` knows."""
    try:
        found = json.loads((root / "data.json").read_bytes())
        return {sha256: {"name": str(last["name"]), "place": str(last["place"])} for sha256, last in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def remember(root: Path, sha256: str, name: str, place: Path) -> None:
    """Note a place; a store that cannot be written is none the worse."""
    known, last = seen(root), {"name": name, "place": str(place)}
    if known.get(sha256) != last and root.is_dir():
        with contextlib.suppress(OSError, StoreError):
            write_atomic(root / "data.json", to_json(known | {sha256: last}), durable=False)


def content_of(name: str, data_dir: Path | None, root: Path) -> str | None:
    """`datasets.identity`; of data that are not where their name says, that of the only ones the store knows by it, or has runs
    of, or else of the data folder itself."""
    try:
        return identity(name, data_dir)
    except DataError:
        form, _, path = name.partition(":")
        if not in_files(name) or Path(path).exists():
            raise
        known = {sha256 for sha256, last in seen(root).items() if last["name"] == name} or _of_runs(name, root)
        if len(known) == 1:
            return known.pop()
        if data_dir is None:
            raise
        with contextlib.suppress(DataError):
            return identity(f"{form}:{data_dir}", None)
        raise


def _of_runs(name: str, root: Path) -> set[str]:
    """Of which data called so the store has runs, as after an import."""
    store, found = Store(root, create=False), set[str]()
    for run_id in store.run_ids():
        with contextlib.suppress(StoreError):
            if (config := store.config(run_id)) is not None and config.dataset == name and config.data_sha256 is not None:
                found.add(config.data_sha256)
    return found


def located(config: RunConfig, data_dir: Path | None, root: Path) -> str:
    """The name by which `datasets.load` finds the data of `config` now; `root` is the store's.

    Every place is accepted by its content alone. DataError, with the places that were looked at, where none has it.
    """
    wanted = config.data_sha256
    if wanted is None or not in_files(config.dataset):
        return config.dataset
    from experiments.lab.datasets.formats import unchanged_sha256

    last = seen(root).get(wanted)
    others: dict[Path, str | None] = {}
    places = [*candidates(config.dataset, data_dir), root / "data" / Path(config.dataset).name]  # of arrays that the store keeps
    for place in places + ([Path(last["place"])] if last else []):
        with contextlib.suppress(DataError, OSError):
            others[place] = None
            others[place] = unchanged_sha256(config.dataset, place)
            if others[place] == wanted:
                remember(root, wanted, config.dataset, place)
                return f"{config.dataset.partition(':')[0]}:{place}"
    places, changed = list(map(str, others)), next(iter(others.values()))
    state = "is not there" if changed is None else f"has changed: its SHA-256 is {changed[:12]}..."
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    raise DataError(f"{config.dataset} {state}, and the data of this run, with SHA-256 {wanted[:12]}..., are in none of "
                    f"{', '.join(places[:SHOWN])}{more}; name the folder that holds them with --data-dir.")
