"""A disk that is full, broken or read-only: exit status 1 and one sentence, old files intact, and a rerun completes."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lives
import pytest
import toy_lives
from toy_runs import identical, run, toy_config
from toy_store import files, finish

from experiments.lab.store.check import check
from experiments.lab.store.checkpoints import load_checkpoint, load_tensors
from experiments.lab.store.records import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a finished run, and with one that was killed after its first checkpoint."""
    for where, name in toy_lives.CHANGED:
        monkeypatch.setattr(where, name, getattr(where, name))
    store = Store(tmp_path / "prepared")
    finish(store, toy_config(seed=7))
    fields = {"momentum": 0.9, "steps": toy_lives.STEPS}
    lives.run(toy_lives.train_until, store.root, fields, 8, 2, 1)
    assert load_checkpoint(store.folder(toy_lives.disk_config().run_id)) is not None
    return store.root


def survives(root: Path, prepared: Path, status: int, messages: Path, words: str, expected: Any) -> bool:
    """Check what a failed attempt left, and finish the run; whether the attempt did fail."""
    config, error = toy_lives.disk_config(), messages.read_text()
    store, finished = Store(root), toy_config(seed=7).run_id
    if status == 0:  # what failed did not matter; then the record must be whole
        assert store.finished(config.run_id)
    else:
        assert status == 1 and error.startswith("error: ") and error.count("\n") == 1, error
        assert words in error and ("run the same command again" in error or "--store" in error), error
        assert store.finished(config.run_id) or load_checkpoint(store.folder(config.run_id)) is not None
    assert files(store.folder(finished)) == files(Store(prepared, create=False).folder(finished))
    assert toy_lives.toy_task(root) == "done"
    summary, weights = store.summary(config.run_id), load_tensors(store.folder(config.run_id) / "final.safetensors")
    assert summary is not None and {k: summary[k] for k in expected[0].values} == expected[0].values
    assert weights is not None and identical(weights[0], expected[0].weights)
    assert store.folder(config.run_id).joinpath("history.jsonl").read_bytes() == expected[1].text
    assert not check(store).damaged and not [*root.glob("runs/*/.*"), *root.rglob("checkpoint.*"), *root.rglob("lease.json")]
    return status == 1


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.verify)])
@pytest.mark.parametrize(
    ("first", "code", "kind"), [(1, errno.ENOSPC, "full"), (2, errno.EROFS, "for good"), (3, errno.EIO, "once")], ids=str
)
def test_every_call_that_changes_a_file_fails(
    first: int, code: int, kind: str, every: int, prepared: Path, tmp_path: Path
) -> None:
    """A traceback, a torn file, a lost checkpoint, a lease for ever, a run that is said to be done and is not.

    A fourth of the calls fail, each in one of three ways, in `make verify` all in all three."""
    def attempt(call: int) -> tuple[Path, Path, Any]:
        root, messages = tmp_path / str(call), tmp_path / f"{call}.messages"
        shutil.copytree(prepared, root)
        return root, messages, lives.start(toy_lives.failing, root, call, code, kind, messages)

    expected, call, tried, failed = run(toy_lives.disk_config()), min(first, every), 0, 0
    following = attempt(call)
    while True:
        (root, messages, process), following = following, attempt(call + every)  # two at once
        process.join()
        assert process.exitcode is not None
        failed += survives(root, prepared, process.exitcode, messages, os.strerror(code), expected)
        if process.exitcode == 0 and int(messages.with_suffix(".calls").read_text()) < call:
            break
        call, tried = call + every, tried + 1
    following[2].join()
    print(f"survived {tried}/{tried} calls that failed with {errno.errorcode[code]}; {failed} of them stopped the run")
    assert failed * every > 20


def test_a_limit_on_the_size_of_files(prepared: Path, tmp_path: Path) -> None:
    """The same by the system itself: nothing is replaced in the program."""
    expected, failed, sizes = run(toy_lives.disk_config()), 0, (0, 1, 700, 4000, 9000, 30000)
    for size in sizes:
        root, messages = tmp_path / str(size), tmp_path / f"{size}.messages"
        shutil.copytree(prepared, root)
        status = lives.run(toy_lives.limited, root, size, messages)
        failed += survives(root, prepared, status, messages, os.strerror(errno.EFBIG), expected)
    print(f"survived {len(sizes)}/{len(sizes)} limits; {failed} of them stopped the run")
    assert 3 <= failed < len(sizes)


def test_a_small_disk_that_becomes_read_only(tmp_path: Path) -> None:
    """The same from end to end: a true file system of 128 KiB, then read-only, then with space."""
    inside = "mount -t tmpfs -o size=128k tmpfs disk"
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"mkdir disk && {inside}"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    place, train = ["--store", f"{tmp_path}/disk/store"], ["train", *shlex.split(
        "--width 64 --depth 2 --n-train 100 --n-validation 0 --batch-size 10 --lr 0.1 --budget steps --steps 20 --json")]
    calls = f"""import os, sys
from experiments.__main__ import main
for before in ("", "cp -r {tmp_path}/disk/store {tmp_path}/full && mount -o remount,ro,size=9m {tmp_path}/disk",
               "mount -o remount,rw {tmp_path}/disk"):
    assert os.system(before) == 0
    print("status", main({train + place}), file=sys.stderr)
sys.stdout = sys.stderr
main({["store", "check", *place]})"""
    script = f"{inside} && cd {ROOT} && exec {shlex.join([sys.executable, '-c', calls])}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    first, _, rest = done.stderr.partition("status 1\n")
    second, _, third = rest.partition("status 1\n")
    assert done.returncode == 0 and third.startswith("status 0\n"), done.stderr
    assert first.count("\n") == second.count("\n") == 1 and first.startswith("error: ") and second.startswith("error: ")
    assert "No space left on device" in first and "Read-only file system" in second
    assert not list((tmp_path / "full").rglob("summary.json")) and not list((tmp_path / "full").rglob(".*"))
