"""File systems that lack links, locks, syncing or times: nothing is lost; and those that refuse more say so at opening."""

from __future__ import annotations

import collections
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lives
import pytest
import toy_lives
from toy_runs import toy_config
from toy_store import finish, stopped_twice

from experiments.__main__ import main
from experiments.lab.store.check import check
from experiments.lab.store.checkpoints import load_checkpoint
from experiments.lab.store.files import StoreError, name_first
from experiments.lab.store.leases import acquire
from experiments.lab.store.records import Store
from experiments.lab.store.transfer import export_runs, import_runs

ROOT = Path(__file__).resolve().parents[2]
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES, errno.EINVAL)


def refusing(code: int) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", NO_LINKS, ids=errno.errorcode.get)
def test_without_links_a_run_is_recorded(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of training would end in an error, at every try."""
    monkeypatch.setattr(os, "link", refusing(code))
    store = Store(tmp_path)
    path = finish(store, toy_config())
    assert store.finished(path.name) and not check(store).damaged and not list(path.glob(".*"))


def test_without_links_the_first_owner_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary of a stale owner would replace that of its successor."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    for text, named in ((b"first", True), (b"second", False)):
        (tmp_path / "draft").write_bytes(text)
        assert name_first(tmp_path / "draft", tmp_path / "summary.json") == named
    assert (tmp_path / "summary.json").read_bytes() == b"first"


def test_killed_while_it_publishes_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that a killed process left would block its run for ever."""
    for where, name in toy_lives.CHANGED:
        monkeypatch.setattr(where, name, getattr(where, name))
    run_id, told = toy_lives.disk_config().run_id, tmp_path / "calls"
    assert lives.run(toy_lives.dying, tmp_path / "counted", 0, told, False) == 0
    calls = int(told.read_text())
    names = {path.name for path in Store(tmp_path / "counted").folder(run_id).iterdir()}
    for call in range(calls - 12, calls + 1):
        root = tmp_path / str(call)
        assert lives.run(toy_lives.dying, root, call, None, False) == -signal.SIGKILL
        assert toy_lives.toy_task(root) == "done"
        assert {path.name for path in Store(root).folder(run_id).iterdir()} == names and not check(Store(root)).damaged


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("where, name", [(os, "fsync"), (fcntl, "flock")], ids=["fsync", "flock"])
def test_what_may_be_lacking(where: Any, name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot be waited for, or has no locks, would take no run."""
    monkeypatch.setattr(where, name, refusing(code))
    store = Store(tmp_path)
    assert store.finished(finish(store, toy_config()).name)


def test_a_checkpoint_need_not_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files cannot be mapped into memory, each run would begin anew."""
    path = stopped_twice(Store(tmp_path), toy_config())
    monkeypatch.setattr("experiments.lab.store.checkpoints.safe_open", refusing(errno.ENODEV), raising=False)
    checkpoint = load_checkpoint(path)
    assert checkpoint is not None and checkpoint.current.step > 0


def test_a_lease_is_kept_warm_without_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine would take a live owner's run after two minutes."""
    lease = acquire(tmp_path)
    assert lease is not None
    os.utime(lease.path, (0, 0))
    monkeypatch.setattr(os, "utime", refusing(errno.ENOSYS))
    lease.touch()
    assert lease.path.stat().st_mtime > 0 and lease.held()


def refuse_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: Any, target: Any, own: Callable[..., None] = os.replace) -> None:
        if os.path.exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        own(source, target)

    monkeypatch.setattr(os, "replace", replace)


def overwrite_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be added overwrites the beginning."""
    own = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *rest, **more: own(path, flags & ~os.O_APPEND, *rest, **more))


REFUSED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "replace": refuse_to_replace, "add": overwrite_instead,
    **{name: lambda patch, name=name, code=code: patch.setattr(os, name, refusing(code)) for name, code in (
        ("write", errno.ENOSPC), ("fsync", errno.EDQUOT), ("truncate", errno.EPERM), ("unlink", errno.EPERM),
    )},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_run_needs_is_tried_at_opening(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run would be trained, and then not be kept."""
    REFUSED[name](monkeypatch)
    monkeypatch.setattr("experiments.lab.sweep.worker.train_runs", lambda *_: pytest.fail("it trains"))
    assert main([*toy_lives.FLAGS, "--store", str(tmp_path / "store")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the store ") and "when asked to" in error and "--store" in error and error.count("\n") == 1
    assert name == "unlink" or not [*tmp_path.rglob(".*")]


def test_measuring_opens_the_store_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long measurement would be made, and then not be kept."""
    run_id = finish(Store(tmp_path), toy_config()).name
    refuse_to_replace(monkeypatch)
    monkeypatch.setattr("experiments.lab.measures.perform.load_subject", lambda *_: pytest.fail("it measures"))
    assert main(["measure", run_id, "--metrics", "lambda_max", "--store", str(tmp_path)]) == 1
    assert "when asked to replace a file" in capsys.readouterr().err


@pytest.mark.parametrize("says", ["nothing", "zero"])
def test_import_where_nobody_knows_the_free_space(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not say how much is free would take no archive."""
    finish(Store(tmp_path / "from"), toy_config())
    export_runs(Store(tmp_path / "from"), tmp_path / "runs.tar")
    usage = collections.namedtuple("usage", "total used free")(0, 0, 0)
    monkeypatch.setattr(shutil, "disk_usage", refusing(errno.ENOSYS) if says == "nothing" else lambda _: usage)
    assert import_runs(Store(tmp_path / "to"), tmp_path / "runs.tar") == 1


SHIM = """
import errno, fcntl, os, stat
def refuse(*_, **__):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))
def fsync(descriptor, own=os.fsync):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    own(descriptor)
os.link, os.utime, os.fsync, fcntl.flock = refuse, refuse, fsync, refuse
"""


@pytest.mark.parametrize("words", [("-m", "experiments", *toy_lives.FLAGS, "--store"), ("tests/toy_sweep.py",)],
                         ids=["train", "study"])
def test_a_whole_command_without_links_locks_and_times(words: tuple[str, ...], tmp_path: Path) -> None:
    """The same in new processes, with spawned workers."""
    (tmp_path / "sitecustomize.py").write_text(SHIM, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, *words, str(tmp_path / "store"), *(["1"] if words[0] != "-m" else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "store", create=False)
    assert store.run_ids() and all(map(store.finished, store.run_ids())) and not check(store).damaged


def test_a_store_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error without a number would say "None"."""
    monkeypatch.setattr(os, "mkdir", lambda *_: (_ for _ in ()).throw(OSError("no folders here")))
    with pytest.raises(StoreError, match="no folders here"):
        Store(tmp_path / "store")
