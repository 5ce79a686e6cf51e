"""Records between machines: pack a store's finished runs, take them into another."""

from __future__ import annotations

import gzip
import io
import math
import re
import secrets
import shutil
import tarfile
import time
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from experiments.lab.datasets.archives import ArchiveError, Reader, is_file, members
from experiments.lab.store.check import Findings, check_measurement, check_run
from experiments.lab.store.checksums import LIGHT, with_checksum
from experiments.lab.store.files import StoreError, append, sync, sync_folder, to_json, writing
from experiments.lab.store.leases import acquire
from experiments.lab.store.records import Store

RUN_FILES = ("config.json", "provenance.json", "history.jsonl", "final.safetensors", "predictions.safetensors")
"""of a run of schema 1, whose summary does not name them all"""
WEIGHTS = "final.safetensors"
_SIZES = {
    r"runs/[0-9a-f]{20}/(config|provenance|plan|summary)\.json": 1 << 20,
    r"runs/[0-9a-f]{20}/history\.jsonl": 1 << 28,
    r"runs/[0-9a-f]{20}/(history|final|predictions|correct)\.safetensors": 1 << 32,
    r"(runs/[0-9a-f]{20}/)?measurements/[A-Za-z0-9_][A-Za-z0-9_.-]{1,79}\.json": 1 << 23,
}
"""every name that is taken from an archive, and its largest size in bytes"""
_MEMBERS = tuple((re.compile(pattern), size) for pattern, size in _SIZES.items())
FILES_OF_RUN = 1000
"""the most files that one run may have in an archive"""
RATIO, SLACK = 100, 1 << 20
"""an archive may expand to so many times its own size, and so many bytes more"""
RESERVE = 1 << 26
"""bytes of the disk that an import leaves free"""
ABANDONED_SECONDS = 86400.0


def export_runs(store: Store, archive: Path, *, light: Collection[str] = ()) -> int:
    """Write every finished run and every measurement of pairs to `archive` (tar); returns the number of runs.

    Of the runs `light` the final weights are left out, and their summaries say so: such a run counts in every table, but
    cannot be measured again or continued. Raises `StoreError` for a damaged record, which no store would take.
    """
    finished = [run_id for run_id in store.run_ids() if store.finished(run_id)]
    draft, found = archive.with_name(f".{archive.name}.{secrets.token_hex(4)}.tmp"), Findings()
    with writing(archive):
        try:
            with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
                for run_id in finished:
                    folder = store.folder(run_id)
                    check_run(store, run_id, found)
                    _refuse_damaged(found)
                    summary = store.summary(run_id) or {}
                    names = RUN_FILES if summary.get("schema", 1) == 1 else sorted(summary["files"])
                    if left_out := run_id in light and WEIGHTS in summary["files"] and summary.get("schema", 1) > 1:
                        names = [name for name in names if name != WEIGHTS]
                    files = [folder / name for name in names] + sorted((folder / "measurements").glob("*.json"))
                    for path in files:
                        if path.exists():
                            _add(tar, path, store)
                    if left_out:  # the summary last: it closes a run
                        content, member = without_weights(summary), tarfile.TarInfo(f"runs/{run_id}/summary.json")
                        member.size = len(content)
                        tar.addfile(_anonymous(member), io.BytesIO(content))
                    else:
                        _add(tar, folder / "summary.json", store)
                for path in sorted((store.root / "measurements").glob("*.json")):
                    check_measurement(path, None, found)
                    _refuse_damaged(found)
                    _add(tar, path, store)
            append(draft, b"")  # a rename may reach the disk before what is renamed
            draft.replace(archive)
            sync_folder(archive.parent)
        finally:
            draft.unlink(missing_ok=True)
    return len(finished)


def _refuse_damaged(found: Findings) -> None:
    if faults := found.damaged + found.unreadable:
        raise StoreError(f"nothing is exported, because {faults[0][1]}")


def _add(tar: tarfile.TarFile, path: Path, store: Store) -> None:
    tar.add(path, str(path.relative_to(store.root)), recursive=False, filter=_anonymous)


def without_weights(summary: Mapping[str, Any]) -> bytes:
    """The summary of a run as it stands for all its files except the weights."""
    kept = {name: value for name, value in summary.items() if name != "seal"}
    files = {name: sha256 for name, sha256 in summary["files"].items() if name != WEIGHTS}
    return with_checksum(to_json({**kept, "files": files, LIGHT: True}))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the name of the user who exports, and the same bytes each time."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime, member.mode = 0, 0o644
    return member


def import_runs(store: Store, archive: Path) -> int:
    """Take the runs of `archive` (.tar or .tar.gz) that `store` lacks; returns their number.

    Only regular files with a record's exact name are read, into a folder beside the runs; each run's digests are checked
    there before the next one is read, and all are moved into place at the end. A run that is finished here, or under
    way, is left as it is. Raises `StoreError` for an archive that is none, is damaged, or holds anything else; then
    nothing of it is taken. Memory is bounded whatever the archive claims, disk by `RATIO` times its size.
    """
    for old in store.root.glob(".import.*"):  # of a process that was killed
        if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    root = store.root / f".import.{secrets.token_hex(8)}"
    try:
        with writing(root):
            staged = Store(root)
        _unpack(archive, staged, store)
        with writing(store.root):
            return adopt(staged, store)
    except (ArchiveError, EOFError, zlib.error, gzip.BadGzipFile, FileNotFoundError, IsADirectoryError) as error:
        raise StoreError(f"{archive} cannot be read as an archive of runs ({error}); export it again") from error
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _unpack(archive: Path, staged: Store, store: Store) -> None:
    """Read the records of `archive` into `staged`, each run checked when it is complete."""
    limit, current, count = RATIO * archive.stat().st_size + SLACK, None, 0
    with open(archive, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(archive) if packed else open(archive, "rb") as stream:
        reader = Reader(cast(BinaryIO, stream), limit)
        for member in members(reader):
            name, size = member.name, member.size
            _check_member(member, archive)
            run_id = name.split("/")[1] if name.startswith("runs/") else None
            if run_id != current:
                _close_run(staged, current, archive)
                if run_id is not None and staged.folder(run_id).exists():
                    raise ArchiveError(f"run {run_id} is there twice")
                current, count = run_id, 0
            count += 1
            if run_id is not None and count > FILES_OF_RUN:
                raise ArchiveError(f"run {run_id} has more than {FILES_OF_RUN} files")
            if (run_id is not None and store.finished(run_id)) or (run_id is None and (store.root / name).exists()):
                current = None
                continue
            if size + RESERVE > _free(store.root):
                raise StoreError(f"{store.root} has no room for {archive}; free space there and import it again")
            _write(reader, staged.root / name, size)
            if run_id is None:
                found = Findings()
                check_measurement(staged.root / name, None, found)
                _refuse(found, archive, staged)
        _close_run(staged, current, archive)


def _check_member(member: tarfile.TarInfo, archive: Path) -> None:
    """`StoreError` unless it is a file of a record by its name, and not larger than those are."""
    largest = next((largest for pattern, largest in _MEMBERS if pattern.fullmatch(member.name)), -1)
    if not is_file(member) or not 0 <= member.size <= largest:
        shown = member.name[:80] if largest < 0 or not is_file(member) else f"{member.name[:80]} of {member.size} bytes"
        raise StoreError(f"{archive} holds {shown!r}, which is no part of a record; nothing of it is used")


def _free(folder: Path) -> float:
    """Bytes free on the disk of `folder`; infinite where the file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return math.inf
    return usage.free if usage.total else math.inf


def _write(reader: Reader, path: Path, size: int) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "xb") as file:
                for piece in reader.content(size):
                    file.write(piece)
                file.flush()
                sync(file.fileno())
        except FileExistsError:
            raise ArchiveError(f"its member {path.name} is there twice") from None


def _close_run(staged: Store, run_id: str | None, archive: Path) -> None:
    """Check a run whose last file was read."""
    if run_id is None or not staged.folder(run_id).exists():
        return
    if not staged.finished(run_id):
        raise ArchiveError(f"run {run_id} has no summary")
    found = Findings()
    check_run(staged, run_id, found)
    _refuse(found, archive, staged)


def _refuse(found: Findings, archive: Path, staged: Store) -> None:
    if faults := found.damaged + found.unreadable:
        what = faults[0][1].replace(f"{staged.root}/", "").partition("; ")[0]
        raise StoreError(f"{archive} is damaged, nothing of it is used ({what}); export it again")


def adopt(staged: Store, store: Store) -> int:
    """Move what was checked into the store; returns the number of runs."""
    taken = 0
    for run_id in staged.run_ids():
        source, target = staged.folder(run_id), store.folder(run_id)
        sync_folder(source)
        target.mkdir(exist_ok=True)
        if (lease := acquire(target)) is None:
            continue
        with lease.keep() as held:
            if held and not store.finished(run_id):
                _move(source, target)
                taken += 1
        lease.release()
    for path in sorted((staged.root / "measurements").glob("*.json")):
        if not (target := store.root / "measurements" / path.name).exists():
            path.rename(target)
    for folder in ("runs", "measurements"):
        sync_folder(store.root / folder)
    return taken


def _move(source: Path, target: Path) -> None:
    """The files of a run into its folder, the summary last; what an unfinished attempt left there goes."""
    for pattern in ("*.safetensors", "*.jsonl", "measurements/*.json"):
        for path in target.glob(pattern):
            path.unlink()
    if (source / "measurements").exists():
        (target / "measurements").mkdir(exist_ok=True)
        for path in (source / "measurements").iterdir():
            path.rename(target / "measurements" / path.name)
        sync_folder(target / "measurements")
    for path in [path for path in source.iterdir() if path.is_file() and path.name != "summary.json"]:
        path.rename(target / path.name)
    sync_folder(target)
    (source / "summary.json").rename(target / "summary.json")
    sync_folder(target)
