"""Data sets load as promised: shapes, balance, pinned content, identities, mirrors."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.lab import datasets
from experiments.lab.datasets import DataError, embedded, idx, make_fashion_mini, mnist
from experiments.lab.datasets.cifar import JPEG_COPY, channel_statistics
from experiments.lab.datasets.download import fetch
from experiments.lab.declare.config import Budget, Machine, RunConfig
from experiments.lab.training.data import prepare

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLOSED_PORT = "http://127.0.0.1:9/"


def write_cifar_folder(folder: Path, counts: tuple[int, ...], classes: int = 10) -> None:
    """data_batch_1.bin ... with `counts` records each and a test_batch.bin of 3, pixels by a fixed seed."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    names = [f"data_batch_{number}.bin" for number in range(1, len(counts) + 1)]
    for name, count in zip([*names, "test_batch.bin"], [*counts, 3], strict=True):
        records = generator.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] %= classes
        (folder / name).write_bytes(records.tobytes())


@pytest.fixture(scope="module")
def mini() -> datasets.Dataset:
    return datasets.load("fashion-mini")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and the folder it serves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/", folder
        running.shutdown()
        thread.join()


def test_names_come_without_numpy() -> None:
    """Breaks when `--help`, which lists the data sets, starts to load numpy."""
    code = ("import sys; from experiments.lab.datasets import NAMES, DataError; "
            "sys.exit(any(name in sys.modules for name in ('numpy', 'torch', 'pooch')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fashion_mini_shapes(mini: datasets.Dataset) -> None:
    """Breaks when the embedded data no longer is what models and studies expect."""
    for split in (mini.train, mini.test):
        assert split.inputs.shape == (10_000, 1, 28, 28) and split.inputs.dtype == np.uint8
        assert split.targets.shape == (10_000,) and split.targets.dtype == np.int64
        assert np.bincount(split.targets).tolist() == [1_000] * 10
    assert mini.outputs == 10 and mini.sha256 == embedded.SHA256


def test_fashion_mini_prefixes_are_balanced(mini: datasets.Dataset) -> None:
    """Breaks when `n_train` smaller than 10,000 would give an unbalanced or class-sorted training set."""
    blocks = mini.train.targets.reshape(-1, 10)
    assert (np.sort(blocks, axis=1) == np.arange(10)).all()
    # Random order within blocks: each class stands in each place about 100 times in 1,000.
    counts = np.array([np.bincount(blocks[:, place], minlength=10) for place in range(10)])
    assert counts.min() > 60 and counts.max() < 140


def test_fashion_mini_examples_are_distinct_and_apart_from_test(mini: datasets.Dataset) -> None:
    """Breaks when the selection repeats examples; Fashion-MNIST itself holds a few identical images."""
    train = {image.tobytes() for image in mini.train.inputs}
    assert len(train) > 9_980
    assert sum(image.tobytes() in train for image in mini.test.inputs) < 20


def test_pinned_statistics_are_those_of_the_images(mini: datasets.Dataset) -> None:
    """Breaks when the constants that normalise inputs drift from the data."""
    mean, std = channel_statistics(mini.train.inputs)
    assert mini.mean == pytest.approx(mean, abs=6e-5) and mini.std == pytest.approx(std, abs=6e-5)


def test_statistics_agree_with_numpy() -> None:
    """Breaks when chunked integer sums stop being the plain mean and standard deviation."""
    images = np.random.default_rng(1).integers(0, 256, (5_000, 3, 2, 2), np.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)))
    assert std == pytest.approx((images / 255).std(axis=(0, 2, 3)))


def test_choice_depends_on_nothing_but_labels() -> None:
    """Breaks when the selection is no longer deterministic, balanced and without repetition."""
    labels = np.tile(np.arange(10), 1_200)
    order = make_fashion_mini.choose(labels)
    assert len(set(order.tolist())) == 10_000 and (order == make_fashion_mini.choose(labels)).all()
    assert (np.sort(labels[order].reshape(-1, 10), axis=1) == np.arange(10)).all()


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mini_can_be_made_again(tmp_path: Path) -> None:
    """Breaks when the script no longer makes the committed data from the original."""
    assert make_fashion_mini.make(DEBIAN_FOLDER, tmp_path) == embedded.SHA256


def test_fashion_mini_fits_the_repository() -> None:
    """Breaks when the embedded data outgrows what a clone should cost."""
    assert sum(path.stat().st_size for path in embedded.FOLDER.iterdir()) < 9e6


def test_unknown_name_lists_the_names() -> None:
    """Breaks when a typing error in a data set's name no longer says what would be right."""
    for call in (datasets.load, datasets.identity, datasets.available):
        with pytest.raises(DataError, match=r"cifra10.*fashion-mini.*cifar10-jpeg"):
            call("cifra10")


def test_named_sets_need_no_identity() -> None:
    """Breaks when a run's id would change for data whose content is pinned anyway."""
    assert [datasets.identity(name) for name in datasets.NAMES] == [None] * 9


def test_cifar_folder_identity_is_content(tmp_path: Path) -> None:
    """Breaks when moving or cutting a folder differently changes its identity, or editing it does not."""
    write_cifar_folder(tmp_path / "a", (4, 2))
    write_cifar_folder(tmp_path / "b", (6,))
    merged = b"".join((tmp_path / "a" / f"data_batch_{number}.bin").read_bytes() for number in (1, 2))
    (tmp_path / "b" / "data_batch_1.bin").write_bytes(merged)
    (tmp_path / "b" / "test_batch.bin").write_bytes((tmp_path / "a" / "test_batch.bin").read_bytes())
    first, second = (datasets.identity(f"cifar-bin:{tmp_path / name}") for name in "ab")
    assert first == second == datasets.load(f"cifar-bin:{tmp_path / 'a'}").sha256
    edited = bytearray(merged)
    edited[100] ^= 1
    (tmp_path / "b" / "data_batch_1.bin").write_bytes(edited)
    assert datasets.identity(f"cifar-bin:{tmp_path / 'b'}") != first


def test_identity_knows_where_training_ends(tmp_path: Path) -> None:
    """Breaks when two folders that differ only in what is training and what is test look the same."""
    write_cifar_folder(tmp_path / "a", (4,))
    train = (tmp_path / "a" / "data_batch_1.bin").read_bytes()
    test = (tmp_path / "a" / "test_batch.bin").read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data_batch_1.bin").write_bytes(train[:-3073])
    (tmp_path / "b" / "test_batch.bin").write_bytes(train[-3073:] + test)
    assert datasets.identity(f"cifar-bin:{tmp_path / 'a'}") != datasets.identity(f"cifar-bin:{tmp_path / 'b'}")


def test_cifar_folder_reads_batches_in_natural_order(tmp_path: Path) -> None:
    """Breaks when data_batch_10 is read before data_batch_2, so that order depends on spelling."""
    write_cifar_folder(tmp_path, (1,) * 11)
    data = datasets.load(f"cifar-bin:{tmp_path}")
    last = np.frombuffer((tmp_path / "data_batch_11.bin").read_bytes(), np.uint8)
    assert data.train.targets[-1] == last[0]
    assert (data.train.inputs[-1].ravel() == last[1:]).all()
    assert data.train.inputs.shape == (11, 3, 32, 32) and data.test.inputs.shape == (3, 3, 32, 32)
    assert data.mean == channel_statistics(data.train.inputs)[0]


def test_cifar100_style_folder_uses_the_fine_label(tmp_path: Path) -> None:
    """Breaks when CIFAR-100's coarse label is taken for its class."""
    record = bytes([7, 93]) + bytes(3072)
    (tmp_path / "train.bin").write_bytes(record * 2)
    (tmp_path / "test.bin").write_bytes(record)
    data = datasets.load(f"cifar-bin:{tmp_path}")
    assert data.outputs == 94 and data.train.targets.tolist() == [93, 93]


@pytest.mark.parametrize(("train", "test", "classes"), [((0, 0), (0,), 2), ((0, 1), (1,), 2), ((0, 4), (19,), 20)])
@pytest.mark.parametrize("layout", ["one label", "two labels"])
def test_the_head_fits_a_users_labels(tmp_path: Path, layout: str, train: tuple[int, ...], test: tuple[int, ...],
                                      classes: int) -> None:
    """Breaks when data of 2 or 20 classes get the outputs of CIFAR, or are refused for having more."""
    names, coarse = (("data_batch_1", "test_batch"), b"") if layout == "one label" else (("train", "test"), b"\x1e")
    for name, labels in zip(names, (train, test), strict=True):
        (tmp_path / f"{name}.bin").write_bytes(b"".join(coarse + bytes([label]) + bytes(3072) for label in labels))
    assert datasets.load(f"cifar-bin:{tmp_path}").outputs == classes


def test_a_constant_channel_is_no_division_by_zero(tmp_path: Path) -> None:
    """Breaks when images in grey, or of one colour, become NaN, and runs on them `diverged`."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 1024), np.uint8)
    pixels[:, 1], pixels[:, 2] = 77, 255
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))  # another constant than in training
    (tmp_path / "data_batch_1.bin").write_bytes(b"".join(b"\1" + image.tobytes() for image in pixels))
    dataset = datasets.load(f"cifar-bin:{tmp_path}")
    config = RunConfig(dataset=dataset.name, batch_size=8, lr=0.1, budget=Budget.STEPS, steps=1)
    data = prepare(config, Machine(), dataset)
    assert dataset.std[1:] == (1, 1) and data.train.inputs[:, 1:].abs().max() < 1e-6 and data.test.inputs.abs().max() < 3


def test_inputs_that_are_not_finite_are_a_data_error() -> None:
    """Breaks when data that cannot be normalised are trained on, and the run passes for diverged."""
    images = np.full((4, 1, 2, 2), 9, np.uint8)
    split = datasets.Split(images, np.zeros(4, np.int64))
    config = RunConfig(batch_size=2, lr=0.1, budget=Budget.STEPS, steps=1)
    for mean, std in (((0.1,), (0.0,)), ((float("nan"),), (1.0,)), ((9 / 255,), (0.0,))):
        with pytest.raises(DataError, match=r"odd has inputs that are not finite.*; "):
            prepare(config, Machine(), datasets.Dataset("odd", split, split, 2, mean, std, ""))


@pytest.mark.parametrize("place", ["mnist", ""])
def test_idx_files_in_the_data_folder_itself(tmp_path: Path, place: str) -> None:
    """Breaks when --data-dir cannot name the folder of MNIST's files, or takes a relative's files of the same names."""
    spec = small_idx_files(tmp_path / place)
    assert mnist.idx_folder(spec, tmp_path) == tmp_path / place
    other = replace(spec, name="fashion-mnist", files=(*spec.files[:3], (spec.files[3][0], "0" * 64)))
    assert mnist.idx_folder(other, tmp_path) == tmp_path / "fashion-mnist"


def test_data_dir_is_argument_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when --data-dir no longer wins over BATCHLAB_DATA_DIR, or that over the cache."""
    (tmp_path / "argument").mkdir()
    (tmp_path / "variable").mkdir()
    (tmp_path / "variable" / "cifar-10-binary.tar.gz").touch()
    monkeypatch.setenv("BATCHLAB_DATA_DIR", str(tmp_path / "variable"))
    assert datasets.available("cifar10")
    assert not datasets.available("cifar10", tmp_path / "argument")
    monkeypatch.setenv("BATCHLAB_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path / "argument"))
    assert not datasets.available("cifar10")


def test_jpeg_copy_of_cifar10() -> None:
    """Breaks when the pinned hash or statistics of cifar10-jpeg are not those of the real files."""
    if not os.environ.get("BATCHLAB_DATA_DIR") or not datasets.available("cifar10-jpeg"):
        pytest.skip("BATCHLAB_DATA_DIR is not set or holds no cifar10-jpeg")
    data = datasets.load("cifar10-jpeg")
    for split in (data.train, data.test):  # learning curves look at the first 2,000
        assert (np.bincount(split.targets[:2000]) > 150).all()
    assert data.train.inputs.shape == (50_000, 3, 32, 32) and data.sha256 == JPEG_COPY.sha256
    assert np.bincount(data.train.targets).tolist() == [5_000] * 10
    mean, std = channel_statistics(data.train.inputs)
    assert data.mean == pytest.approx(mean, abs=6e-5) and data.std == pytest.approx(std, abs=6e-5)


def test_second_mirror_steps_in(server: tuple[str, Path], tmp_path: Path) -> None:
    """Breaks when a dead or lying mirror ends a download that another mirror could serve."""
    address, served = server
    small = small_idx_files(served / "good")
    (served / "bad").mkdir()
    for name, _ in small.files:
        content = bytearray(gzip.decompress((served / "good" / name).read_bytes()))
        content[-1] ^= 1
        (served / "bad" / name).write_bytes(gzip.compress(bytes(content)))
    spec = replace(small, mirrors=(CLOSED_PORT, f"{address}missing/", f"{address}bad/", f"{address}good/"))
    data = mnist.load_idx(spec, tmp_path / "data")
    assert data.train.targets.tolist() == [0, 1, 2, 3] and data.test.inputs.shape == (2, 1, 28, 28)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(name for name, _ in spec.files)


def test_no_mirror_delivers(server: tuple[str, Path], tmp_path: Path) -> None:
    """Breaks when a failed download leaves files behind or does not say what each mirror did."""
    address, served = server
    small = small_idx_files(tmp_path / "original")
    (served / small.files[0][0]).write_bytes(b"<html>moved</html>")
    spec = replace(small, mirrors=(CLOSED_PORT, address))
    with pytest.raises(DataError, match=r"train-images.*127\.0\.0\.1:9.*copy the file there"):
        mnist.load_idx(spec, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_download_needs_a_writable_place(tmp_path: Path) -> None:
    """Breaks when a data folder that cannot be made surfaces as a traceback instead of one sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be made.*--data-dir"):
        fetch((CLOSED_PORT,), tmp_path / "file" / "data.gz", verify=lambda path: None)


def test_present_files_need_no_network(tmp_path: Path) -> None:
    """Breaks when files that are already there are downloaded again."""
    spec = replace(small_idx_files(tmp_path), mirrors=())
    assert mnist.load_idx(spec, tmp_path).train.inputs.shape == (4, 1, 28, 28)


def small_idx_files(folder: Path) -> mnist.IdxSpec:
    """Four IDX files of four training and two test images in `folder`, and their specification."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(2)
    contents = [
        encoded
        for count in (4, 2)
        for encoded in (
            idx.encode_images(generator.integers(0, 256, (count, 1, 28, 28), np.uint8)),
            idx.encode_labels(np.arange(count)),
        )
    ]
    names = [name for name, _ in mnist.MNIST.files]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(gzip.compress(content))
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return replace(mnist.MNIST, files=tuple(zip(names, digests, strict=True)), mirrors=(), train_count=4, test_count=2)
