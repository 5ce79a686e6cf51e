"""Records between machines: check a store, pack its finished runs, take them into another."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from experiments.lab.config import ConfigError
from experiments.lab.store import Store, StoreError, write_atomic

RUN_FILES = ("config.json", "provenance.json", "history.jsonl", "final.safetensors", "predictions.safetensors")
_MEMBER = re.compile(
    r"runs/[0-9a-f]{20}/((config|provenance|summary)\.json|history\.jsonl|(final|predictions)\.safetensors"
    r"|measurements/[A-Za-z0-9_.-]{1,80}\.json)|measurements/[A-Za-z0-9_.-]{1,80}\.json"
)
MAX_BYTES = 4 << 30
"""the largest file taken from an archive"""


def check(store: Store) -> list[str]:
    """One sentence for each finished run whose files are missing, altered or not its own."""
    from experiments.lab.training.checkpoint import digest, load_tensors

    damaged = []
    for run_id in store.run_ids():
        folder = store.folder(run_id)
        try:
            summary, config = store.summary(run_id), store.config(run_id)
            if summary is None:
                continue
            if config is None or config.run_id != run_id or summary.get("run_id") != run_id:
                damaged.append(f"{folder} holds the record of another run; delete it and run again")
                continue
            for name, sha256 in summary["files"].items():
                loaded = load_tensors(folder / name)
                if loaded is None or digest(*loaded) != sha256:
                    damaged.append(f"{folder / name} is missing or altered; delete {folder} and run again")
            store.history(run_id)
        except (StoreError, ConfigError, ValueError, KeyError, AttributeError) as error:
            damaged.append(f"{folder} cannot be read: {error}")
    return damaged


def export_runs(store: Store, archive: Path) -> int:
    """Write every finished run and every measurement of pairs to `archive` (tar); returns the number of runs."""
    finished = [run_id for run_id in store.run_ids() if store.finished(run_id)]
    draft = archive.with_name(f".{archive.name}.tmp")
    with tarfile.open(draft, "w") as tar:
        def add(path: Path) -> None:
            tar.add(path, str(path.relative_to(store.root)), recursive=False, filter=_anonymous)

        for run_id in finished:
            folder = store.folder(run_id)
            files = [folder / name for name in RUN_FILES] + sorted((folder / "measurements").glob("*.json"))
            # the summary last: a cut-off archive never holds a finished run without its files
            for path in [*files, folder / "summary.json"]:
                if path.exists():
                    add(path)
        for path in sorted((store.root / "measurements").glob("*.json")):
            add(path)
    draft.replace(archive)
    return len(finished)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the name of the user who exports."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def import_runs(store: Store, archive: Path) -> int:
    """Take the runs of `archive` that `store` lacks; returns their number.

    The archive is read as a stream and never extracted: only regular members with a record's exact name are taken,
    and a run that is finished here is left as it is. Raises `StoreError` for an archive that is none, or holds anything
    else; then nothing of it is taken.
    """
    taken: set[str] = set()
    have = {run_id for run_id in store.run_ids() if store.finished(run_id)}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if not member.isreg() or not _MEMBER.fullmatch(member.name) or member.size > MAX_BYTES:
                    raise StoreError(f"{archive} holds {member.name[:80]!r}, which is no part of a record; nothing of it is used")
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                run_id = member.name.split("/")[1] if member.name.startswith("runs/") else None
                path = store.root / member.name
                if run_id in have or (run_id is None and path.exists()):
                    continue
                file = tar.extractfile(member)
                assert file is not None
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, file.read())
                if run_id is not None and path.name == "summary.json":
                    taken.add(run_id)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise StoreError(f"{archive} cannot be read as an archive of runs ({error}); export it again") from error
    return len(taken)
