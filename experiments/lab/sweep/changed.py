"""Runs of a user's own code or data that are other runs than the store's because a part has been edited: which part it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from experiments.lab.declare.config import OWN, RunConfig
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store

PARTS = {**{part: (f"{part}_sha256", part) for part in OWN}, "data": ("data_sha256", "dataset")}
"""part -> the fields with its content's hash and with its name"""


def changed(configs: Sequence[RunConfig], store: Store) -> list[str]:
    """A sentence for each part that has changed since runs of the store that differ from one of `configs` in nothing else.

    Runs that are there as they are asked for have no say.
    """
    asked = {config.run_id: config for config in configs if _hashes(config)}
    if not asked:
        return []
    stored: dict[str, list[RunConfig]] = {}
    for run_id in store.run_ids():
        with contextlib.suppress(StoreError):
            if (config := store.config(run_id)) is not None and asked.pop(run_id, None) is None and _hashes(config):
                stored.setdefault(_rest(config), []).append(config)
    found: dict[tuple[str, ...], list[tuple[RunConfig, RunConfig]]] = {}
    for config in asked.values():
        if others := [other for other in stored.get(_rest(config), ()) if _same_name(config, other)]:
            parts, nearest = min(((_differing(config, other), other) for other in others), key=lambda pair: len(pair[0]))
            found.setdefault(parts, []).append((config, nearest))
    return [_sentence(parts, pairs) for parts, pairs in sorted(found.items())]


def _hashes(config: RunConfig) -> dict[str, str]:
    return {part: value for part, (field, _) in PARTS.items() if (value := getattr(config, field)) is not None}


def _rest(config: RunConfig) -> str:
    """All of a config except for the hashes, and for where own data lie."""
    left_out = {field for field, _ in PARTS.values()} | ({"dataset"} if config.data_sha256 is not None else set())
    return json.dumps({name: value for name, value in config.to_dict().items() if name not in left_out}, sort_keys=True)


def _same_name(config: RunConfig, other: RunConfig) -> bool:
    """Whether the data are the same, or others under one name: those of another name have not changed."""
    return config.data_sha256 == other.data_sha256 or config.dataset == other.dataset


def _differing(config: RunConfig, other: RunConfig) -> tuple[str, ...]:
    return tuple(part for part, (field, _) in PARTS.items() if getattr(config, field) != getattr(other, field))


def _sentence(parts: Sequence[str], pairs: Sequence[tuple[RunConfig, RunConfig]]) -> str:
    config, other = pairs[0]
    named = " and ".join(f"the {part} {getattr(config, PARTS[part][1])}" for part in parts)
    which = f"run {other.run_id} was" if len(pairs) == 1 else f"{len(pairs)} runs such as {other.run_id} were"
    return f"{named} {'has' if len(parts) == 1 else 'have'} changed since {which} begun; what is asked for now is another run"
