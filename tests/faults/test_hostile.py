"""Files made to harm: nothing is executed, nothing written elsewhere, memory and disk stay bounded, one sentence."""

from __future__ import annotations

import ast
import contextlib
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_runs import toy_config
from toy_store import files, finish, stopped_twice

from experiments.__main__ import main
from experiments.lab.declare.config import Machine
from experiments.lab.store.checkpoints import load_checkpoint, load_tensors
from experiments.lab.store.records import Store
from experiments.lab.store.transfer import export_runs
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.tasks import Failed, Train
from experiments.lab.sweep.worker import run_task

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
RUN = "runs/" + "0" * 20


class Payload:
    """What a hostile pickle holds: loading it makes the file `executed`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def hostile(kind: str, executed: Path) -> bytes:
    """A file that is dangerous to whoever trusts it."""
    match kind:
        case "pickle":
            return pickle.dumps(Payload(executed))
        case "torch.save":
            buffer = io.BytesIO()
            torch.save({"weight": Payload(executed)}, buffer)
            return buffer.getvalue()
        case "header of 100 GB":
            return (100 << 30).to_bytes(8, "little") + b"{" + b" " * 100
        case "tensor of 100 GB":
            entry = {"1.weight": {"dtype": "F32", "shape": [25 << 30], "data_offsets": [0, 100 << 30]}}
            header = json.dumps(entry).encode()
            return len(header).to_bytes(8, "little") + header
        case _:
            return b"[" * 200_000


def test_the_payload_works(tmp_path: Path) -> None:
    """Nothing would be executed, because there is nothing to execute."""
    pickle.loads(hostile("pickle", tmp_path / "executed"))
    assert (tmp_path / "executed").is_dir()


KINDS = ("pickle", "torch.save", "header of 100 GB", "tensor of 100 GB", "200,000 brackets")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["final.safetensors", "predictions.safetensors", "history.safetensors", "history.jsonl",
                                  "config.json", "provenance.json", "summary.json"])
def test_hostile_files_in_a_record(name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record from elsewhere would run its author's code here."""
    store, config = Store(tmp_path / "store"), toy_config()
    (finish(store, config) / name).write_bytes(hostile(kind, tmp_path / "executed"))
    argv = ["--store", str(store.root)]
    assert main(["store", "check", *argv]) == 1 and name in capsys.readouterr().out
    if name in ("final.safetensors", "config.json", "summary.json"):
        assert main(["measure", config.run_id, "--metrics", "lambda_max", *argv]) == 1
        assert name in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_checkpoint_is_none(kind: str, tmp_path: Path) -> None:
    """Resuming would execute it, or end in a traceback for ever."""
    path = stopped_twice(Store(tmp_path / "store"), toy_config())
    for name in ("checkpoint.7.safetensors", "checkpoint.x.safetensors", "checkpoint.8.9.safetensors"):
        (path / name).write_bytes(hostile(kind, tmp_path / "executed"))
    checkpoint = load_checkpoint(path)
    assert checkpoint is not None and checkpoint.current.step == 6
    assert not (tmp_path / "executed").exists()


def test_another_runs_checkpoint_is_none(tmp_path: Path) -> None:
    """A copied folder would continue with another seed's weights."""
    store = Store(tmp_path)
    first, second = stopped_twice(store, toy_config()), stopped_twice(store, toy_config(seed=1))
    for path in first.glob("checkpoint.*"):
        (second / path.name).write_bytes(path.read_bytes())
    assert load_checkpoint(second) is None


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_weights_for_sharpness(kind: str, tmp_path: Path) -> None:
    """`python -m sharpness --weights` is for anybody's files."""
    from sharpness.__main__ import main as sharpness

    path = tmp_path / "weights.safetensors"
    path.write_bytes(hostile(kind, tmp_path / "executed"))
    (tmp_path / "hostile_nets.py").write_text("import torch\ndef net(): return torch.nn.Linear(2, 2)\n"
                                              "def data(): return torch.zeros(4, 2), torch.zeros(4).long()\n")
    sys.path.insert(0, str(tmp_path))
    try:
        argv = ["--model", "hostile_nets:net", "--data", "hostile_nets:data", "--weights", str(path)]
        assert sharpness(argv) == 1
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["hostile_nets"]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("layout", ["cifar-10-batches-py", "pickles named .bin"])
def test_pickled_data_are_never_loaded(layout: str, tmp_path: Path) -> None:
    """CIFAR's python version is pickles: whoever offers the folder would own the machine."""
    ending = "" if layout.startswith("cifar") else ".bin"
    for name in (f"data_batch_1{ending}", f"test_batch{ending}", "batches.meta"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    config = toy_config(dataset=f"cifar-bin:{tmp_path}")
    report = run_task(Train(config), Store(tmp_path / "store"), Machine(), Stopper(), None)
    assert isinstance(report, Failed) and report.why.count("\n") == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_archives_of_a_data_set(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same in the place of a download."""
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(hostile(kind, tmp_path / "executed"))
    argv = ["train", "--budget", "steps", "--steps", "1", "--lr", "0.1", "--batch-size", "10", "--dataset", "cifar10"]
    assert main([*argv, "--data-dir", str(tmp_path), "--store", str(tmp_path / "store")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle"),
                     ("os", "system"), ("tarfile", "extractall")}


def forbidden(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [a.name for a in names if a.name.split(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                found.append(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in FORBIDDEN_METHODS:
                found.append(f"{owner}.{name}")
            case ast.Attribute(attr="extractall" | "extract"):
                found.append("extractall")
            case ast.keyword(arg="shell" | "allow_pickle", value=ast.Constant(value=True)):
                found.append("shell or allow_pickle")
            case _:
                pass
    return found


def test_no_code_of_ours_unpickles_or_executes() -> None:
    """One `torch.load` anywhere would undo all of the above. CIFAR's Python layout is read with inert stand-ins alone
    (test_pickled.py)."""
    paths = [path for package in ("experiments", "sharpness", "analysis") for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 80
    assert {str(path.relative_to(ROOT)): names for path in paths if (names := forbidden(ast.parse(path.read_text())))} == {
        "experiments/lab/datasets/pickled.py": ["pickle"]
    }


@pytest.mark.parametrize("code", ["import pickle", "from joblib import load", "torch.load(f)", "eval(x)", "tar.extractall()",
                                  "np.load(f, allow_pickle=True)"])
def test_the_search_finds(code: str) -> None:
    """It would find nothing, ever."""
    assert forbidden(ast.parse(code))


# --- archives for `store import` --------------------------------------------------------------------------


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header, whatever it claims."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT if size >= 8 << 30 else tarfile.USTAR_FORMAT)


def zeros(head: bytes, count: int) -> bytes:
    """gzip of `head` and `count` MiB of zeros: a thousandth of their size."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb", compresslevel=9) as stream:
        stream.write(head)
        for _ in range(count):
            stream.write(bytes(MIB))
    return buffer.getvalue()


def many(count: int) -> bytes:
    """gzip of a run with `count` empty measurements."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb", compresslevel=1) as stream:
        for number in range(count):
            stream.write(member(f"{RUN}/measurements/m{number}.json", 0))
    return buffer.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "a member that claims 100 GB": lambda: member(f"{RUN}/final.safetensors", 100 << 30),
    "a member that claims 4 GB": lambda: member(f"{RUN}/final.safetensors", 4 << 30) + bytes(1024),
    "400 MB of zeros in a record": lambda: zeros(member(f"{RUN}/final.safetensors", 400 * MIB), 400),
    "a history of 400 MB": lambda: zeros(member(f"{RUN}/history.jsonl", 400 * MIB), 400),
    "JSON of 400 MB": lambda: zeros(member(f"{RUN}/summary.json", 400 * MIB), 400),
    "a name of 400 MB": lambda: zeros(member("././@LongLink", 400 * MIB, tarfile.GNUTYPE_LONGNAME), 400),
    "an extended header of 400 MB": lambda: zeros(member("x", 400 * MIB, tarfile.XHDTYPE), 400),
    "a sparse file": lambda: member(f"{RUN}/final.safetensors", 512, tarfile.GNUTYPE_SPARSE) + bytes(512),
    "400 MB after the end": lambda: zeros(b"", 400),
    "100,000 measurements": lambda: many(100_000),
    "200,000 brackets": lambda: member(f"{RUN}/measurements/m-0.json", 200_000) + b"[" * 200_192 + bytes(1024),
}

IMPORT = """
import resource, sys
from pathlib import Path
from experiments.__main__ import main
from experiments.lab.store import transfer, check, leases
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]),) * 2)
sys.exit(main(["store", "import", sys.argv[1], "--store", sys.argv[2]]))
"""


def bytes_below(root: Path) -> int:
    """Size of the files there, of those that are not deleted while we look."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory from what /proc says")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_for_import(name: str, tmp_path: Path) -> None:
    """A file of a few hundred kB would fill memory or disk. Memory is limited by the system, not by our word."""
    archive, store = tmp_path / "runs.tar", tmp_path / "store"
    archive.write_bytes(BOMBS[name]())
    Store(store)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", IMPORT, str(archive), str(store), str(64 * MIB)], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    largest = 0
    while process.poll() is None:
        largest = max(largest, bytes_below(store))
        time.sleep(0.01)
    out, error = process.communicate()
    assert process.returncode == 1 and out == "" and error.startswith("error: ") and error.count("\n") == 1, error
    assert files(store) == {} and not list(store.glob(".import*"))
    assert largest <= 101 * archive.stat().st_size + MIB
    print(f"{name}: archive {archive.stat().st_size} bytes, on disk at most {largest}, {time.monotonic() - started:.1f} s")


def test_a_whole_archive_fits_into_that_memory(tmp_path: Path) -> None:
    """The limit would refuse everything."""
    store = Store(tmp_path / "a")
    finish(store, toy_config())
    export_runs(store, tmp_path / "runs.tar")
    Store(tmp_path / "b")
    argv = [sys.executable, "-c", IMPORT, str(tmp_path / "runs.tar"), str(tmp_path / "b"), str(64 * MIB)]
    assert subprocess.run(argv, cwd=ROOT, capture_output=True).returncode == 0
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_an_altered_archive_is_refused_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit on the way, or a number changed by somebody: taken with the rest, it would stand in a table."""
    store = Store(tmp_path / "a")
    for seed in range(2):
        finish(store, toy_config(seed=seed))
    export_runs(store, tmp_path / "runs.tar")
    content = (tmp_path / "runs.tar").read_bytes()
    places = [i for i in range(0, len(content), 997) if any(content[i - i % 512 : i - i % 512 + 512])]
    Store(tmp_path / "b")
    refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 4
        (tmp_path / "bad.tar").write_bytes(damaged)
        status = main(["store", "import", str(tmp_path / "bad.tar"), "--store", str(tmp_path / "b")])
        said = capsys.readouterr()
        assert status in (0, 1) and said.err.count("\n") == status
        if status:
            refused += 1
            assert files(tmp_path / "b") == {}
        else:  # padding, or a field of a header that says nothing of the content
            assert files(tmp_path / "b") == files(tmp_path / "a")
            for path in sorted((tmp_path / "b").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            Store(tmp_path / "b")
    assert refused > 0.8 * len(places)
    print(f"flipped bits in an archive: refused {refused}/{len(places)}, the others were in padding")


@pytest.mark.parametrize("edit", ["another summary", "another seed", "a second copy", "no summary"])
def test_forged_archives(edit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole members in the wrong place: today's numbers under yesterday's name."""
    store = Store(tmp_path / "a")
    first, second = finish(store, toy_config()), finish(store, toy_config(seed=1))
    names = ["config.json", "provenance.json", "history.jsonl", "history.safetensors", "final.safetensors",
             "predictions.safetensors", "summary.json"]
    swapped = {"another summary": "summary.json", "another seed": "config.json"}.get(edit)
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name in names if edit != "no summary" else names[:-1]:
            tar.add((second if name == swapped else first) / name, f"runs/{first.name}/{name}")
        if edit == "a second copy":
            tar.add(first / "config.json", f"runs/{first.name}/config.json")
    assert main(["store", "import", str(tmp_path / "bad.tar"), "--store", str(tmp_path / "b")]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and files(tmp_path / "b") == {}


def test_an_import_does_not_disturb_a_run_under_way(tmp_path: Path) -> None:
    """Its owner's files would be replaced under its hands."""
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    finish(store, toy_config())
    export_runs(store, tmp_path / "runs.tar")
    folder = stopped_twice(other, toy_config())
    from toy_store import start

    running = start(other, toy_config())
    before = files(other.root)
    assert main(["store", "import", str(tmp_path / "runs.tar"), "--store", str(other.root)]) == 0
    assert files(other.root) == before
    running.close()
    assert main(["store", "import", str(tmp_path / "runs.tar"), "--store", str(other.root)]) == 0
    assert files(other.root) == files(store.root) and not list(folder.glob("checkpoint.*"))
    assert load_tensors(folder / "final.safetensors") is not None
