"""Records between machines: export, import, hostile archives."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import toy_config
from toy_store import files, finish, stopped_twice

from experiments.__main__ import main
from experiments.lab.declare.study import measure
from experiments.lab.store.check import check
from experiments.lab.store.checkpoints import load_tensors
from experiments.lab.store.checksums import with_checksum
from experiments.lab.store.files import StoreError, to_json
from experiments.lab.store.records import Store


def filled(root: Path) -> Store:
    store = Store(root)
    for seed in (0, 1):
        finish(store, toy_config(seed=seed))
    ids = [toy_config(seed=seed).run_id for seed in (0, 1)]
    store.write_measurement(measure("lambda_max", examples=10), ids[:1], {"value": 1.0})
    store.write_measurement(measure("slice", examples=10), ids, {"value": 2.0})
    stopped_twice(store, toy_config(seed=2))
    return store


def test_export_and_import_carry_every_finished_run(tmp_path: Path) -> None:
    """Records of a GPU machine would arrive incomplete, or unfinished ones as finished."""
    store, archive = filled(tmp_path / "a"), str(tmp_path / "runs.tar")
    unfinished = toy_config(seed=2).run_id
    assert main(["store", "export", archive, "--store", str(store.root)]) == 0
    assert main(["store", "import", archive, "--store", str(tmp_path / "b")]) == 0
    expected = {name: content for name, content in files(store.root).items() if unfinished not in name}
    assert files(tmp_path / "b") == expected
    assert len([name for name in expected if "measurements" in name]) == 2


def test_a_run_without_its_weights_is_whole_but_for_them(tmp_path: Path) -> None:
    """A light copy of a record would count as damaged, or give weights that are not there."""
    from experiments.lab.store.checkpoints import final_weights
    from experiments.lab.store.transfer import export_runs, import_runs

    store, archive = filled(tmp_path / "a"), tmp_path / "runs.tar"
    light, full = (toy_config(seed=seed).run_id for seed in (0, 1))
    other, again = Store(tmp_path / "b"), Store(tmp_path / "c")
    assert export_runs(store, archive, light=[light]) == import_runs(other, archive) == 2
    assert export_runs(other, archive) == import_runs(again, archive) == 2
    assert not any(vars(check(again)).values())
    assert files(again.folder(full)) == {n: c for n, c in files(store.folder(full)).items() if n != "lease.json"}
    lacking = files(store.folder(light)).keys() - files(again.folder(light)).keys()
    assert lacking - {"lease.json"} == {"final.safetensors"}
    record = again.record(toy_config(seed=0))
    assert record is not None and record.values["test_loss"] == store.summary(light)["test_loss"]
    with pytest.raises(StoreError, match="without its weights"):
        final_weights(again, light)


def test_an_archive_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure an empty file would stand where the copy of all runs was."""
    from experiments.lab.store.transfer import export_runs

    store, done, sync = filled(tmp_path / "a"), [], os.fsync

    def spy(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append((path.suffix, (tmp_path / "out" / "runs.tar").exists()))
        sync(descriptor)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "fsync", spy)
    export_runs(store, tmp_path / "out" / "runs.tar")
    assert done == [(".tmp", False), ("", True)]


def test_an_archive_names_no_user(tmp_path: Path) -> None:
    """The exporting user's name would travel with the records."""
    from experiments.lab.store.transfer import export_runs

    export_runs(filled(tmp_path / "a"), tmp_path / "runs.tar")
    with tarfile.open(tmp_path / "runs.tar") as tar:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}


def test_import_leaves_finished_runs_alone(tmp_path: Path) -> None:
    """Two machines' records of one run would be mixed."""
    from experiments.lab.store.transfer import export_runs, import_runs

    store = filled(tmp_path / "a")
    export_runs(store, tmp_path / "runs.tar")
    (store.folder(toy_config(seed=1).run_id) / "summary.json").unlink()
    (store.folder(toy_config(seed=0).run_id) / "provenance.json").write_text('{"mine": true}')
    assert import_runs(store, tmp_path / "runs.tar") == 1
    assert store.finished(toy_config(seed=1).run_id)
    assert (store.folder(toy_config(seed=0).run_id) / "provenance.json").read_text() == '{"mine": true}'


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


RUN = "runs/" + "0" * 20
HOSTILE = [
    member("../escaped.json", size=4),
    member("/tmp/escaped.json", size=4),
    member(f"{RUN}/../../../escaped.json", size=4),
    member(f"{RUN}/summary.json/../../../../escaped.json", size=4),
    member(f"{RUN}/summary.json", type=tarfile.SYMTYPE, linkname="../../../escaped.json"),
    member(f"{RUN}/summary.json", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    member(f"{RUN}/summary.json", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member(f"{RUN}/summary.json", type=tarfile.FIFOTYPE),
    member("runs", type=tarfile.SYMTYPE, linkname=".."),
    member(f"{RUN}/run.py", size=4),
    member(f"{RUN}/measurements/.._x.json/y.json", size=4),
    member("runs/0/summary.json", size=4),
]


@pytest.mark.parametrize("info", HOSTILE, ids=[f"{info.name[-30:]}-{info.type.decode()}" for info in HOSTILE])
def test_a_hostile_archive_is_refused_whole(info: tarfile.TarInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file would be written outside the store (CVE-2025-4517 and its kin), or half an archive be taken."""
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(member(f"{RUN}/config.json", size=2), io.BytesIO(b"{}"))
        tar.addfile(info, io.BytesIO(b"evil"[: info.size]))
    Store(tmp_path / "store")
    before = files(tmp_path)
    assert main(["store", "import", str(tmp_path / "bad.tar"), "--store", str(tmp_path / "store")]) == 1
    assert "no part of a record" in capsys.readouterr().err
    assert files(tmp_path) == before
    assert not Path("/tmp/escaped.json").exists() and not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_no_archive_is_one_sentence(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut download would end in a traceback."""
    if content is not None:
        (tmp_path / "runs.tar").write_bytes(content)
    assert main(["store", "import", str(tmp_path / "runs.tar"), "--store", str(tmp_path / "store")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_cut_archive_finishes_no_run_without_its_files(tmp_path: Path) -> None:
    """A summary alone means finished: it must come after everything it stands for."""
    from experiments.lab.store.transfer import export_runs, import_runs

    export_runs(filled(tmp_path / "a"), tmp_path / "runs.tar")
    content = (tmp_path / "runs.tar").read_bytes()
    for cut in range(512, len(content), len(content) // 7):
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        store = Store(tmp_path / f"b{cut}")
        with contextlib.suppress(StoreError):
            import_runs(store, tmp_path / "cut.tar")
        for run_id in store.run_ids():
            loaded = load_tensors(store.folder(run_id) / "final.safetensors")
            assert not store.finished(run_id) or (loaded is not None and torch.isfinite(loaded[0]["1.weight"]).all())


FOREIGN = [{"/dev/zero": "0" * 64}, {"../../x": "0" * 64}, {"nothing": None}, {"final.safetensors": None},
           {"config.json": "x"}, "config.json", None]


@pytest.mark.parametrize("named", FOREIGN, ids=str)
@pytest.mark.parametrize("more", [True, False])
def test_a_summary_names_files_of_a_record_alone(named: object, more: bool, tmp_path: Path) -> None:
    """A check or an import would read a device for ever, or take a run that nothing vouches for."""
    store, config = Store(tmp_path / "store"), toy_config()
    path = finish(store, config) / "summary.json"
    document = json.loads(path.read_bytes())
    del document["seal"]
    document["files"] = {**document["files"], **named} if more and isinstance(named, dict) else named
    path.write_bytes(with_checksum(to_json(document)))
    assert [where for where, _ in check(store).damaged] == [path.parent]


def test_a_long_line_of_an_old_history_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB of an archive would take gigabytes of memory."""
    store, config = Store(tmp_path / "store"), toy_config()
    folder, parsed, loads = finish(store, config), [], json.loads
    document = json.loads((folder / "summary.json").read_bytes())
    (folder / "summary.json").write_bytes(to_json({"run_id": config.run_id, "status": document["status"], "files": {}}))
    assert not check(store).damaged
    (folder / "history.jsonl").write_bytes(b"[" + b"[]," * (1 << 20) + b"[]]\n")
    monkeypatch.setattr(json, "loads", lambda text: (parsed.append(len(text)), loads(text))[1])
    assert [where for where, _ in check(store).damaged] == [folder]
    assert max(parsed) <= 1 << 16
