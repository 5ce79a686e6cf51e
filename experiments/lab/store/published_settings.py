"""The settings of a published scale: the runs that it was to have, with every field as it stood, defaults included.

They lie beside the records as settings.json, so that results are read as they were published, whatever has become of
defaults and studies since. A run's id is computed from its fields and the defaults of that time, and is no part of the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.declare.config import SCIENCE_VERSION, RunConfig
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.store.checksums import config_id

FILE = "settings.json"


def content(runs: Sequence[tuple[str, RunConfig]]) -> bytes:
    """What `read` reads: the values that all runs share, and one line per run with its stage and the others."""
    fields = [config.full_dict() for _, config in runs]
    differ = [name for name in fields[0] if any(run[name] != fields[0][name] for run in fields)]
    head = {
        "science_version": SCIENCE_VERSION,
        "defaults": {f.name: f.default for f in dataclasses.fields(RunConfig) if f.default is not dataclasses.MISSING},
        "shared": {name: value for name, value in fields[0].items() if name not in differ},
        "columns": ["stage", *differ],
    }
    rows = [[stage, *(values[name] for name in differ)] for (stage, _), values in zip(runs, fields, strict=True)]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n  {lines}\n ]\n}}\n'.encode()


def read(folder: Path) -> list[tuple[str, RunConfig]]:
    """Stage and configuration of every run published in `folder`; raises `UsageError` where they cannot be read."""
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"{folder} has no {FILE}; `python -m analysis publish` writes it")
    try:
        document = json.loads(path.read_bytes())
        rows = [dict(zip(document["columns"], row, strict=True)) for row in document["runs"]]
        return [(row.pop("stage"), _config({**document["shared"], **row}, document)) for row in rows]
    except ConfigError as error:
        raise UsageError(f"{path} is of another batchlab ({str(error).partition(';')[0]}); read it with that one") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({error}); `python -m analysis publish` writes it again") from error


def _config(fields: dict[str, Any], document: dict[str, Any]) -> RunConfig:
    """A run as recorded, under the id that these fields had; fields added since are at their defaults, which change nothing."""
    defaults = document["defaults"]
    away = {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}
    return RunConfig.recorded(config_id({"science_version": document["science_version"], **away}), fields)
