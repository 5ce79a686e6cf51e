"""A task that cannot be trained: one sentence, the right exit status, no file in the store."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.lab.datasets import memory

HERE = Path(__file__).parent
TRAIN = ["train", "--batch-size", "4", "--lr", "0.1", "--budget", "steps", "--steps", "2"]
GOOD = {"data": "faulty:good", "model": "faulty:net"}

BAD: dict[str, dict[str, str]] = {
    # data
    "20 inputs and 19 targets": {"data": "faulty:wrong_lengths"},
    "target -1 is out of range": {"data": "faulty:out_of_range"},
    "inputs hold NaN": {"data": "faulty:nan_inputs"},
    "targets hold NaN": {"data": "faulty:nan_targets"},
    "gave other data at its second call": {"data": "faulty:other_each_time"},
    "faulty:raises() failed (RuntimeError: two lines)": {"data": "faulty:raises"},
    "faulty:exits() failed": {"data": "faulty:exits"},
    "expected a pair": {"data": "faulty:no_pair"},
    "expected an array of real numbers": {"data": "faulty:strings"},
    "make them alike": {"data": "faulty:unlike"},
    "loss cross_entropy has no meaning": {"data": "faulty:numbers"},
    "has no function 'nothing'": {"data": "faulty:nothing"},
    "is empty; put images of the class into it": {"data": "images:{tmp}/images"},
    "needs 24 GiB of memory once it is read": {"data": "npz:{tmp}/big.npz"},
    "y_train holds Python objects": {"data": "npz:{tmp}/pickled.npz"},
    "short.npz cannot be read as an .npz file": {"data": "npz:{tmp}/short.npz"},
    "nowhere.npz does not exist": {"data": "npz:{tmp}/nowhere.npz"},
    "big.npz is no text in UTF-8": {"data": "text:{tmp}/big.npz"},
    "train-images-idx3-ubyte is missing": {"data": "idx:{tmp}/images"},
    # networks
    "there is no module nowhere": {"model": "nowhere:net"},
    "has no function 'nowhere'": {"model": "faulty:nowhere"},
    "module 'faulty_import' cannot be imported (ZeroDivisionError": {"model": "faulty_import:net"},
    "faulty:in_place: one update made twice": {"model": "faulty:in_place"},
    "TypeError: cannot assign 'torch.FloatTensor' as parameter 'weight'": {"model": "faulty:assigning"},
    "faulty:counting: one update made twice": {"model": "faulty:counting"},
    "faulty:numpys: one update made twice": {"model": "faulty:numpys"},
    "without_parameters has no parameter": {"model": "faulty:without_parameters"},
    "frozen has no parameter": {"model": "faulty:frozen"},
    "another_shape does not fit the data": {"model": "faulty:another_shape"},
    "returns [16, 3] for 16 examples": {"model": "faulty:another_head"},
    "returns a tuple": {"model": "faulty:a_tuple"},
    "gave a list, not a torch.nn.Module": {"model": "faulty:no_module"},
    "returns [16, 0]": {"model": "faulty:empty"},
    "detached does not fit": {"model": "faulty:detached"},
    # losses
    "long_loss returns [32] for 16 examples": {"loss": "faulty:long_loss"},
    "cube_loss returns [16, 2, 2]": {"loss": "faulty:cube_loss"},
    "number_loss returns float": {"loss": "faulty:number_loss"},
    "constant_loss does not fit": {"loss": "faulty:constant_loss"},
    "triple_loss returns 3 values": {"loss": "faulty:triple_loss"},
    "broken_loss does not fit": {"loss": "faulty:broken_loss"},
    "NO_LOSS is or gave a int": {"loss": "faulty:NO_LOSS"},
    # optimizers
    "cannot step without a closure": {"optimizer": "faulty:needs_closure"},
    "of_no_parameters() failed (ValueError: optimizer got an empty": {"optimizer": "faulty:of_no_parameters"},
    "no_optimizer gave a str": {"optimizer": "faulty:no_optimizer"},
    "without_lr takes no 'lr'": {"optimizer": "faulty:without_lr"},
    "neither tensors nor plain values": {"optimizer": "faulty:odd_state"},
    "of_other_parameters gave an optimizer of other parameters": {"optimizer": "faulty:of_other_parameters"},
}


@pytest.mark.parametrize("words", BAD)
def test_one_sentence_and_nothing_started(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, hours of wrong training, or a run that can never go on."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setattr(memory, "free", lambda: 2 << 30)
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
    archives(tmp_path)
    task = GOOD | {option: value.format(tmp=tmp_path) for option, value in BAD[words].items()}
    options = [word for option, value in task.items() for word in (f"--{option}", value)]
    assert main([*TRAIN, *options, "--store", str(tmp_path / "store")]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert words in captured.err
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def archives(folder: Path) -> None:
    """One that claims two gigabytes, one with an array of objects, and one that was cut."""
    objects = np.array([{}] * 4, object)
    np.savez(folder / "pickled.npz", x_train=np.ones((4, 2)), y_train=objects, x_test=np.ones((4, 2)), y_test=objects)
    (folder / "short.npz").write_bytes((folder / "pickled.npz").read_bytes()[:-20])
    with zipfile.ZipFile(folder / "big.npz", "w") as archive:
        for name, shape in {"x_train": (700_000, 3, 32, 32), "y_train": (4,), "x_test": (4, 3, 32, 32), "y_test": (4,)}.items():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "|u1"})
            archive.writestr(f"{name}.npy", header.getvalue())


def test_the_good_parts_are_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the above would be refused for something that they share."""
    monkeypatch.syspath_prepend(HERE)
    assert main([*TRAIN, "--data", GOOD["data"], "--model", GOOD["model"], "--store", str(tmp_path)]) == 0
