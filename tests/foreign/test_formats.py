"""Data of a user's in files: read as they are meant, or refused in one sentence."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import ONE_SENTENCE
from PIL import Image

from experiments.__main__ import main
from experiments.lab import datasets
from experiments.lab.datasets import DataError, Kind, idx, memory
from experiments.lab.datasets.formats import unchanged_sha256

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 3


def npz(path: Path, **changes: Any) -> str:
    """Keras' four arrays, with changes; None leaves one out."""
    arrays = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:3], "y_test": LABELS[:3]} | changes
    np.savez(path / "a.npz", **{name: value for name, value in arrays.items() if value is not None})
    return f"npz:{path / 'a.npz'}"


def refused(name: str, words: str) -> None:
    with pytest.raises(DataError, match=ONE_SENTENCE) as caught:
        datasets.load(name)
    assert words in str(caught.value)


# --- npz --------------------------------------------------------------------------------------------------


def test_both_orders_of_axes_and_labels_in_a_column_are_the_same_data(tmp_path: Path) -> None:
    """Colours would become rows, or a class of each example a column of numbers."""
    last = datasets.load(npz(tmp_path))
    first = datasets.load(npz(tmp_path, x_train=np.moveaxis(PIXELS, 3, 1), x_test=np.moveaxis(PIXELS[:3], 3, 1),
                              y_train=LABELS[:, None].astype(np.uint8), y_test=LABELS[:3, None].astype(np.uint8)))
    assert first.sha256 == last.sha256 and first.kind is Kind.CLASSES and first.outputs == 3
    assert first.train.inputs.shape == (12, 3, 6, 5) and (first.train.inputs[4, 2] == PIXELS[4, :, :, 2]).all()
    assert first.train.targets.tolist() == LABELS.tolist()


@pytest.mark.parametrize(("targets", "kind", "outputs"), [
    (np.ones(12), Kind.NUMBERS, 1), (np.ones((12, 4)), Kind.NUMBERS, 4), (LABELS[:, None], Kind.CLASSES, 3),
    (LABELS % 2 == 0, Kind.CLASSES, 2),
])
def test_targets_say_what_the_task_is(targets: np.ndarray, kind: Kind, outputs: int, tmp_path: Path) -> None:
    """One column of numbers or classes beside one column of inputs would be taken for tokens."""
    x = np.linspace(0, 1, 12, dtype=np.float32)[:, None]
    data = datasets.load(npz(tmp_path, x_train=x, x_test=x, y_train=targets, y_test=targets))
    assert (data.kind, data.outputs) == (kind, outputs)


def test_tokens_and_validation_examples(tmp_path: Path) -> None:
    """A vocabulary without its rarest token would be too small a network."""
    x = DRAW.integers(0, 5, (6, 7))
    y = np.where(x == 4, -100, x)
    data = datasets.load(npz(tmp_path, x_train=x, x_test=x, y_train=y, y_test=y, x_val=x[:2] + 4, y_val=y[:2]))
    assert data.kind is Kind.TOKENS and data.outputs == 9 and data.validation is not None
    assert data.validation.inputs.tolist() == (x[:2] + 4).tolist()


BAD_ARRAYS: dict[str, dict[str, Any]] = {
    "no array y_test": {"y_test": None},
    "no array y_val": {"x_val": PIXELS},
    "holds Python objects": {"y_test": np.array([1, "a", None], object)},
    "12 inputs and 11 targets": {"y_train": LABELS[:11]},
    "neither may be empty": {"x_test": PIXELS[:0], "y_test": LABELS[:0]},
    "target -1 is out of range": {"y_train": LABELS - 1},
    "class 3 is in no training example": {"y_test": LABELS[:3] + 1},
    "inputs hold NaN": {"x_train": np.full((12, 2), np.nan), "x_test": np.ones((3, 2))},
    "targets hold NaN": {"y_train": np.full(12, np.inf), "y_test": np.ones(3)},
    "make them alike": {"x_test": PIXELS[:3, :, :4]},
    "no images of 1, 3 or 4": {"x_train": PIXELS[..., :2]},
    "channels first or last": {"x_train": PIXELS[:, :3]},
    "expected an array of real numbers": {"y_train": np.array(list("abcabcabcabc"))},
    "one class per example": {"y_train": np.stack([LABELS, LABELS], 1)},
    "not complex": {"x_train": np.ones((12, 2), complex)},
    "nothing counts": {"x_train": LABELS[:, None], "y_train": np.full((12, 1), -100)},
}


@pytest.mark.parametrize("words", BAD_ARRAYS)
def test_arrays_that_are_no_task(words: str, tmp_path: Path) -> None:
    """A traceback, or a run on numbers that mean nothing."""
    refused(npz(tmp_path, **BAD_ARRAYS[words]), words)


def test_damaged_archives(tmp_path: Path) -> None:
    """Cut, changed in one byte, of another format, not there."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS, y_test=LABELS)
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:500] + bytes([whole[500] ^ 255]) + whole[501:], b"", b"PK\3\4"):
        path.write_bytes(content)
        refused(f"npz:{path}", "cannot be read as an .npz file")
    np.save(path.with_suffix(".npy"), PIXELS)
    refused(f"npz:{path.with_suffix('.npy')}", "cannot be read as an .npz file")
    refused(f"npz:{path}2", "does not exist")
    refused(f"npz:{tmp_path}", "cannot be read as an .npz file")


def test_arrays_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine would be out of memory, and the process killed. Two gigabytes are claimed by the header alone."""
    name, header = npz(tmp_path, x_train=None), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (700_000, 3, 32, 32), "fortran_order": False, "descr": "|u1"})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("x_train.npy", header.getvalue())
    monkeypatch.setattr(memory, "free", lambda: 2 << 30)
    refused(name, "needs 24 GiB of memory once it is read, more than the 2 GiB")
    monkeypatch.setattr(memory, "free", lambda: None)
    refused(name, "cannot be read as an .npz file")


def test_free_memory_is_known_here() -> None:
    """No size would be refused; files that lie in the page cache must not count as used."""
    found = memory.free()
    assert found is not None and found > 1 << 20


# --- images -----------------------------------------------------------------------------------------------


def folder_of(root: Path, *, parts: tuple[str, ...] = ("",), suffix: str = "png", mode: str = "RGB") -> dict[str, Path]:
    """Two classes of three images in each part."""
    found = {}
    for part in parts:
        for k, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                path = root / part / name / f"{i}.{suffix}"
                Image.fromarray(PIXELS[3 * k + i]).convert(mode).save(path)
                found[f"{part}/{name}/{i}".lstrip("/")] = path
    return found


def test_a_folder_per_class(tmp_path: Path) -> None:
    """Images of another class, in another order, or with rows for columns."""
    folder_of(tmp_path, parts=("train", "test", "validation"))
    (tmp_path / "train" / ".thumbnails").touch()
    data = datasets.load(f"images:{tmp_path}")
    assert data.train.inputs.tolist() == np.moveaxis(PIXELS[:6], 3, 1).tolist() and data.outputs == 2
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1] and data.validation is not None
    assert data.test.inputs.tolist() == data.train.inputs.tolist() == data.validation.inputs.tolist()


@pytest.mark.parametrize(("suffix", "mode", "channels"), [("png", "L", 1), ("bmp", "L", 1), ("jpg", "RGB", 3), ("jpeg", "L", 1),
                                                         ("png", "1", 1), ("bmp", "RGB", 3), ("png", "P", 3)])
def test_formats_of_images(suffix: str, mode: str, channels: int, tmp_path: Path) -> None:
    """Grey images would be in colour, or the numbers of a palette be taken for brightness."""
    files = folder_of(tmp_path, suffix=suffix, mode=mode)
    data = datasets.load(f"images:{tmp_path}")
    assert data.train.inputs.shape == (5, channels, 6, 5) and len(data.test.targets) == 1
    expected = np.asarray(Image.open(files["cat/0"]).convert("L" if channels == 1 else "RGB")).reshape(6, 5, channels)
    both = np.concatenate([data.train.inputs, data.test.inputs])
    assert any((np.moveaxis(image, 0, 2) == expected).all() for image in both)


def test_images_split_as_every_pair_is(tmp_path: Path) -> None:
    """Another split at another call, or on another machine, would be other data."""
    folder_of(tmp_path)
    data = datasets.load(f"images:{tmp_path}")
    order = np.argsort(np.random.Philox(key=20180613).random_raw(6), kind="stable")
    assert data.test.inputs[0].tolist() == np.moveaxis(PIXELS[order[0]], 2, 0).tolist()


def test_folders_that_are_no_images(tmp_path: Path) -> None:
    """One unreadable or odd image among thousands must be found by its name, not by a wrong number."""
    name, files = f"images:{tmp_path}", folder_of(tmp_path, parts=("train", "test"))
    odd, whole = files["train/dog/1"], files["train/dog/1"].read_bytes()
    for content in (whole[:60], b"GIF89a", b""):
        odd.write_bytes(content)
        refused(name, "dog/1.png cannot be read")
    for image, words in ((PIXELS[0, :5], "is 5 x 5 pixels in colour, but 0.png is 5 x 6 pixels"),
                         (PIXELS[0, :, :, 0], "in grey, but"),
                         (DRAW.integers(0, 9, (6, 5, 4), np.uint8), "mode RGBA"), (np.ones((6, 5), np.uint16), "mode I;16")):
        Image.fromarray(image).save(odd)
        refused(name, words)
    odd.write_bytes(whole)
    (tmp_path / "test" / "cow").mkdir()
    refused(name, "cow is a class without training images")
    (tmp_path / "train" / "cow").mkdir()
    refused(name, f"{tmp_path / 'train' / 'cow'} is empty")
    (tmp_path / "val").mkdir()
    refused(name, "has val beside train and test")
    (tmp_path / "val").rmdir()
    (tmp_path / "test").rename(tmp_path / "validation")
    refused(name, "has no folder test")
    refused(f"images:{tmp_path / 'train' / 'cow'}", "is empty; it needs a folder per class")
    refused(f"images:{tmp_path / 'train' / 'cat'}", "0.png is in no class's folder")
    refused(f"images:{tmp_path / 'none'}", "No such file")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    refused(f"images:{tmp_path / 'one'}", "has one class, cat")


def test_images_need_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback where the project is installed without extras; other formats must not need it."""
    folder_of(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    refused(f"images:{tmp_path}", "pip install 'batchlab[data]'")


def test_an_image_that_changes_its_class_changes_the_data(tmp_path: Path) -> None:
    """A worker that asks before each run would take the edited folder for the old one: no file in it changed."""
    files = folder_of(tmp_path)
    before = unchanged_sha256(f"images:{tmp_path}", tmp_path)
    files["dog/0"].rename(tmp_path / "cat" / "9.png")
    assert unchanged_sha256(f"images:{tmp_path}", tmp_path) != before


# --- IDX and text -----------------------------------------------------------------------------------------


def idx_files(folder: Path) -> dict[str, bytes]:
    """Images of 5 x 6 pixels in four files, two of them gzipped."""
    grey, labels = PIXELS[..., 0], LABELS.astype(np.uint8)
    contents = {}
    for split, count in (("train", 12), ("t10k", 4)):
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (count, 6, 5))
        contents[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(header + grey[:count].tobytes())
        contents[f"{split}-labels-idx1-ubyte"] = idx.encode_labels(labels[:count])
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def test_idx_files_of_any_size(tmp_path: Path) -> None:
    """Only MNIST's own sizes, or only gzipped files, could be read."""
    idx_files(tmp_path)
    data = datasets.load(f"idx:{tmp_path}")
    assert data.train.inputs[:, 0].tolist() == PIXELS[..., 0].tolist() and data.outputs == 3
    assert data.test.targets.tolist() == LABELS[:4].tolist()


def test_damaged_idx_files(tmp_path: Path) -> None:
    """Pixels of the wrong image, or a traceback."""
    contents = idx_files(tmp_path)
    labels, images = "train-labels-idx1-ubyte", "train-images-idx3-ubyte.gz"
    raw = gzip.decompress(contents[images])
    bad = {labels: (contents[labels][:-1], contents[labels] + b"0", b"", contents[images], b"\0\0\x0d\1" + contents[labels][4:]),
           images: (contents[images][:-9], gzip.compress(raw[:-1]), gzip.compress(raw + b"0"), raw,
                    gzip.compress(raw[:4] + b"\xff" * 12))}
    for name, versions in bad.items():
        for content in versions:
            (tmp_path / name).write_bytes(content)
            refused(f"idx:{tmp_path}", name)
        (tmp_path / name).write_bytes(contents[name])
    (tmp_path / labels).unlink()
    refused(f"idx:{tmp_path}", f"{labels} is missing")


def test_text_is_cut_into_pieces_with_the_next_character_as_target(tmp_path: Path) -> None:
    """A target shifted by none or two would be another task; a vocabulary of the training part alone would not know the test."""
    text = "".join("aé\nz☃"[int(i)] for i in DRAW.integers(0, 5, 64 * 21)) + "Z"
    (tmp_path / "t.txt").write_bytes(text.encode())
    data = datasets.load(f"text:{tmp_path / 't.txt'}")
    place = {c: i for i, c in enumerate(sorted(set(text)))}
    assert data.kind is Kind.TOKENS and data.outputs == 6 and data.train.inputs.dtype == np.int64
    assert [data.train.inputs.shape, data.test.inputs.shape] == [(19, 64), (2, 64)]
    read = np.concatenate([data.train.inputs, data.test.inputs]).ravel().tolist()
    assert read == [place[c] for c in text[:-1]]
    assert np.concatenate([data.train.targets, data.test.targets]).ravel().tolist() == [place[c] for c in text[1:]]


def test_texts_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    for content, words in (("ab" * 64, "has 128 characters, but needs at least 129"), ("a" * 200, "repeats one character")):
        path.write_text(content)
        refused(f"text:{path}", words)
    path.write_bytes(b"caf\xe9" * 100)
    refused(f"text:{path}", "no text in UTF-8 (byte 3)")
    refused(f"text:{tmp_path}", "Is a directory")
    refused(f"text:{path}2", "No such file")


# --- in the store -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npz", "images", "text", "MODULE"])
def test_runs_on_own_data_are_whole_and_move(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    """The store would call the record that of another run, and ask its owner to move it aside."""
    if form == "npz":
        name = npz(tmp_path)
    elif form == "images":
        folder_of(tmp_path / "pets")
        name = f"images:{tmp_path / 'pets'}"
    elif form == "text":
        (tmp_path / "t.txt").write_text("to be or not to be, " * 40)
        name = f"text:{tmp_path / 't.txt'}"
    else:
        monkeypatch.syspath_prepend(Path(__file__).parent)
        name = "faulty:good"
    store, model = str(tmp_path / "store"), ["causal-transformer"] if form == "text" else ["mlp", "--width", "4", "--depth", "1"]
    words = ["--data", name, "--model", *model, "--batch-size", "2", "--lr", "0.1", "--budget", "steps", "--steps", "1"]
    assert main(["train", *words, "--store", store]) == 0
    assert main(["store", "check", "--store", store]) == 0
    assert main(["store", "export", str(tmp_path / "runs.tar"), "--store", store]) == 0
    assert main(["store", "import", str(tmp_path / "runs.tar"), "--store", str(tmp_path / "other")]) == 0
    assert main(["train", *words, "--store", str(tmp_path / "other")]) == 0
    assert "is finished already" in capsys.readouterr().err


def test_moved_images_are_found_by_their_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run could not be measured once its folder has another name; and other pixels must not pass for it."""
    files = folder_of(tmp_path / "pets")
    words = ["--width", "4", "--depth", "1", "--batch-size", "2", "--lr", "0.1", "--budget", "steps", "--steps", "1", "--json"]
    assert main(["train", "--data", f"images:{tmp_path / 'pets'}", *words, "--store", str(tmp_path / "store")]) == 0
    run_id = json.loads(capsys.readouterr().out)["run_id"]
    (tmp_path / "data").mkdir()
    (tmp_path / "pets").rename(tmp_path / "data" / "animals")
    measure = ["measure", run_id, "--metrics", "lambda_max", "--store", str(tmp_path / "store"),
               "--data-dir", str(tmp_path / "data")]
    edited = tmp_path / "data" / "animals" / "cat" / files["cat/0"].name
    whole = edited.read_bytes()
    Image.fromarray(PIXELS[11]).save(edited)
    assert main(measure) == 1 and "name the folder that holds them" in capsys.readouterr().err
    edited.write_bytes(whole)
    assert main(measure) == 0
