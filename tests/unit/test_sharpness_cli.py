"""`python -m sharpness`: what it prints, and one sentence and an exit status for whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sharpness.__main__ import main
from sharpness.metrics import TABLE

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]

MODULE = """
import math
import time
import numpy as np
import torch
from torch import nn

def model(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

def any_name(**options):
    assert "input_shape" not in options
    return model(**options)

def shaped(outputs, input_shape):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), outputs))

def no_train():
    return {"test": data()}

def unequal():
    return {"train": (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))}

def odd_images():
    return np.zeros((9, 3, 8, 3), np.uint8), np.zeros(9, np.uint8)

def square_tokens():
    return torch.randn(6, 3, 4), torch.randint(0, 3, (6, 3))

def images():
    draw = np.random.default_rng(0)
    return {"train": (draw.integers(0, 255, (12, 5, 5, 3)).astype(np.uint8), draw.integers(0, 4, (12, 1)).astype(np.uint8)),
            "test": (draw.integers(0, 255, (6, 5, 5, 3)).astype(np.uint8), np.arange(6).reshape(6, 1).astype(np.uint8))}

def tied():
    found = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    found[2].weight = found[0].weight
    return found

def data(n=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)

def batches():
    return list(zip(*(part.split(16) for part in data())))

def three():
    return torch.randn(9, 3), torch.randint(0, 3, (9,))

def targets():
    return data()[0], torch.randn(40, 3)

def mse():
    return nn.MSELoss()

def summed():
    return nn.CrossEntropyLoss(reduction="sum")

def endless():
    def loss(outputs, targets):
        if endless.calls > 60:
            time.sleep(0.3)
        endless.calls += 1
        return nn.functional.cross_entropy(outputs, targets)
    return loss

endless.calls = 0

def root():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))
        def forward(self, x):
            return self.w.abs().sqrt() * x[:, :3]
    return Root()

def broken():
    raise RuntimeError("no such net")

def pair():
    return data()

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 3))

class Needs(Net):
    def __init__(self, width):
        super().__init__()

a_net, a_pair = Net(), data()

def absolute(outputs, targets):
    return (outputs - targets).abs().mean()

class Graph(nn.Module):
    # forty nodes, and no other number
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("links", torch.eye(40) + torch.eye(40).roll(1, 0))
    def forward(self, x):
        return self.links @ self.inner(x)

def tokens():
    # two batches padded to lengths of their own
    torch.manual_seed(0)
    x, y = torch.randn(4, 5, 4), torch.randint(3, (4, 5))
    y[2:, 2:] = -100
    return [(x[:2], y[:2]), (x[2:, :3], y[2:, :3])]

def token_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)

def graph_batch():
    return [data()]

a_list = [1, 2]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with a module of its own name, so that no test sees another's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"failing_{name}.py").write_text("import a_package_that_is_not_there")
    return name


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    seen = capsys.readouterr()
    return status, seen.out, seen.err


def of(name: str, *more: str, model: str = "model", data: str = "data") -> list[str]:
    return ["--model", f"{name}:{model}", "--data", f"{name}:{data}", *more]


def test_json_is_one_document_with_complete_fields(folder, capsys):
    status, out, err = run(capsys, *of(folder, "--json"))
    document = json.loads(out)
    assert status == 0
    assert [entry["metric"] for entry in document] == [metric.name for metric in TABLE]
    for entry in document:
        assert entry.keys() >= {"metric", "family", "value", "standard_error", "seconds", "status", "sentence", "n"}
        assert "vectors" not in entry and not any(isinstance(v, list) and len(v) > 5000 for v in entry.values())
    assert f"{len(TABLE)} of {len(TABLE)}" in err and "left" in err


def test_the_table_for_a_person(folder, capsys):
    status, out, _ = run(capsys, *of(folder, "--metrics", "trace", "lambda_max", "--examples", "30", data="batches"))
    lines = out.splitlines()
    assert status == 0 and len(lines) == 3
    assert lines[0].split()[:2] == ["metric", "value"]
    assert lines[1].split()[0] == "lambda_max" and lines[2].split()[-2] == "30"


def test_a_regression_gives_the_reason(folder, capsys):
    more = ("--loss", f"{folder}:mse", "--metrics", "pac_bayes_sigma", "trace")
    status, out, _ = run(capsys, *of(folder, *more, data="targets"))
    assert status == 0 and "not applicable" in out and "pac_bayes_sigma: accuracy needs" in out


def test_options_reach_the_measurement(folder, capsys):
    more = "--json", "--metrics", "trace", "--params", "0.weight", "--seed", "3", "--mode", "train", "--batch-size", "8"
    (entry,) = json.loads(run(capsys, *of(folder, *more))[1])
    assert (entry["n"], entry["seed"], entry["mode"]) == (24, 3, "train")


def test_list(capsys):
    status, out, _ = run(capsys, "--list")
    assert status == 0 and len(out.splitlines()) == len(TABLE)
    assert [m["name"] for m in json.loads(run(capsys, "--list", "--json")[1])] == [m.name for m in TABLE]


def test_what_is_not_finite_is_a_failure(folder, capsys):
    more = ("--metrics", "trace", "--loss", f"{folder}:mse", "--json")
    status, out, _ = run(capsys, *of(folder, *more, model="root", data="targets"))
    assert status == 1 and json.loads(out)[0]["status"] == "nonfinite" and json.loads(out)[0]["value"] is None


WRONG = {
    "no metric 'sharp'": ["--metrics", "sharp"],
    "must be MODULE:FUNCTION": ["--model", "nets"],
    "cannot be imported": ["--model", "no_module_of_this_name:model"],
    "a_package_that_is_not_there": ["--model", "failing_NAME:model"],
    "no function 'models'": ["--model", "NAME:models"],
    "data holds a int": ["--data", "NAME:a_list"],
    "not a function": ["--model", "NAME:a_list"],
    "without path and .py": ["--model", "models/NAME.py:model"],
    "missing 1 required": ["--model", "NAME:Needs"],
    "no name of torch.nn.functional": ["--loss", "mse_los"],
    "no such net": ["--model", "NAME:broken"],
    "not a torch.nn.Module": ["--model", "NAME:data"],
    "data holds": ["--data", "NAME:model"],
    "cannot be called": ["--loss", "NAME:a_list"],
    "gave a tuple, which": ["--loss", "NAME:data"],
    "summed over examples": ["--loss", "NAME:summed"],
    "do not fit": ["--model", "NAME:tied"],
    "names no parameter": ["--params", "weight"],
    "examples is 0": ["--examples", "0"],
    "batch_size is -1": ["--batch-size", "-1"],
    "device": ["--device", "abacus"],
    "must be NAME=VALUE": ["--model-option", "width"],
    "takes no 'wide'; it takes width": ["--model-option", "wide=3"],
    "no 'train', but a mapping needs it": ["--data", "NAME:no_train"],
    "channels first or last": ["--data", "NAME:odd_images"],
    "as many of both": ["--data", "NAME:unequal"],
    "classes second or last": ["--data", "NAME:square_tokens"],
}


@pytest.mark.parametrize("sentence", list(WRONG))
def test_wrong_usage(sentence, folder, capsys):
    wrong = [word.replace("NAME", folder) for word in WRONG[sentence]]
    given = dict(zip(of(folder)[::2], of(folder)[1::2], strict=True)) | {wrong[0]: wrong[1]}
    status, out, err = run(capsys, *(word for pair in given.items() for word in pair))
    assert (status, out) == (2, "")
    assert sentence in err and err.startswith("error: ") and len(err.splitlines()) == 1, err


def test_a_model_is_made_for_the_data_and_its_options(folder, capsys):
    """A function that names what it needs is left without it, or one of any names is given what it does not expect."""
    asked = ("--metrics", "random_slice", "--json")
    status, out, err = run(capsys, *of(folder, *asked, "--loss", "cross_entropy", model="shaped", data="images"))
    assert status == 0, err
    assert json.loads(out)[0]["n"] == (75 + 1) * 6  # classes of the test examples, too
    status, out, err = run(capsys, *of(folder, *asked, "--model-option", "width=7", model="any_name"))
    assert status == 0 and json.loads(out)[0]["n"] == 5 * 7 + 8 * 3, err


LOSSES = ["torch.nn.functional:mse_loss", "mse_loss", "MSELoss", "torch.nn:MSELoss", "NAME:mse", "NAME:absolute"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_named_as_people_name_it(loss, folder, capsys):
    """The function itself, a name of torch's, a class, or a function that returns the loss."""
    more = ("--loss", loss.replace("NAME", folder), "--metrics", "random_slice", "--json")
    status, out, err = run(capsys, *of(folder, *more, data="targets"))
    assert status == 0 and json.loads(out)[0]["losses"][4] > 0, err


@pytest.mark.parametrize("model, data", [("Net", "a_pair"), ("a_net", "pair"), ("a_net", "a_pair")])
def test_a_class_a_model_and_data_themselves(model, data, folder, capsys):
    assert run(capsys, *of(folder, "--metrics", "fisher_rao_norm", model=model, data=data))[0] == 0


def test_metrics_with_commas(folder, capsys):
    _, out, _ = run(capsys, *of(folder, "--json", "--metrics", "trace,fisher_rao_norm", "random_slice,"))
    assert [entry["metric"] for entry in json.loads(out)] == ["trace", "fisher_rao_norm", "random_slice"]


def test_a_graph_has_no_single_examples(folder, capsys):
    """What has no meaning is said, and is no failure."""
    more = ("--metrics", "trace,gradient_noise")
    status, out, _ = run(capsys, *of(folder, *more, model="Graph", data="graph_batch"))
    assert status == 0 and "not applicable" in out and "gradient_noise: " in out and "influence each other" in out


def test_the_plan_measures_nothing(folder, capsys):
    status, out, err = run(capsys, *of(folder, "--plan", "--metrics", "trace,phi_full"))
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == ["trace", "phi_full", "in", "timed"]
    assert "of 2" not in err
    status, out, _ = run(capsys, *of(folder, "--plan", "--json", "--metrics", "trace"))
    assert json.loads(out)["metrics"]["trace"] == json.loads(out)["value"] > 0


def test_what_the_users_code_prints_is_not_in_the_document(folder, capsys):
    Path(f"{folder}.py").write_text(MODULE + "\nprint('loud')\ndef loud():\n    print('loud')\n    return model()\n")
    _, out, err = run(capsys, *of(folder, "--json", "--metrics", "trace", model="loud"))
    assert json.loads(out) and "loud" in err and "at most about" in err


def test_model_and_data_are_needed(capsys):
    status, _, err = run(capsys, "--json")
    assert status == 2 and "--model and --data are needed" in err


def tensors() -> dict[str, torch.Tensor]:
    shapes = {"0.weight": (6, 4), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,)}
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def test_weights_are_loaded(folder, capsys):
    save_file(tensors(), "w.safetensors")
    more = ("--json", "--metrics", "norm_scaled_lambda")
    assert json.loads(run(capsys, *of(folder, *more, "--weights", "w.safetensors"))[1])[0]["norm_squared"] == 51.0
    assert json.loads(run(capsys, *of(folder, *more))[1])[0]["norm_squared"] != 51.0


def test_tied_weights_are_in_the_file_once(folder, capsys):
    save_file({"0.weight": torch.ones(3, 3), "0.bias": torch.zeros(3), "2.bias": torch.zeros(3)}, "w.safetensors")
    more = ("--metrics", "norm_scaled_lambda", "--weights", "w.safetensors")
    assert run(capsys, *of(folder, *more, model="tied", data="three"))[0] == 0


FAULTS = ("missing file", "lacks '2.bias'", "the model lacks", "in the file", "safetensors", "pickle", "NaN")


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_cannot_be_used(fault, folder, capsys):
    found = tensors()
    if fault == "lacks '2.bias'":
        del found["2.bias"]
    if fault == "the model lacks":
        found["3.bias"] = torch.ones(3)
    if fault == "in the file":
        found["2.bias"] = torch.ones(1)  # would broadcast
    if fault == "NaN":
        found["2.bias"] = torch.full((3,), float("nan"))
    save_file(found, "w.safetensors")
    if fault == "safetensors":
        Path("w.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:-5])
    if fault == "pickle":
        torch.save(found, "w.safetensors")
    if fault == "missing file":
        Path("w.safetensors").unlink()
    status, out, err = run(capsys, *of(folder, "--weights", "w.safetensors"))
    damaged = fault in ("safetensors", "pickle", "NaN")  # the others are weights of something else: wrong usage
    said = {"missing file": "cannot be read", "pickle": "cannot be read", "safetensors": "cannot be read"}.get(fault, fault)
    assert (status, out) == (1 if damaged else 2, "") and said in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize(("number", "as_json"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_stopped(number, as_json, folder, tmp_path):
    """What is done is shown; half a JSON document would be read as a whole one."""
    more = ["--loss", f"{folder}:endless", "--metrics", "norm_scaled_lambda", "local_entropy"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sharpness", *of(folder, *more), *(["--json"] if as_json else [])],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stderr is not None and process.stdout is not None
    try:
        for line in process.stderr:
            if "norm_scaled_lambda" in line:
                break
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert out == "" if as_json else "norm_scaled_lambda" in out


def test_the_library_needs_none_of_the_command_lines_packages():
    blocked = ("tyro", "rich", "matplotlib", "jupyter", "pandas", "safetensors.torch")
    code = (f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import sharpness, sharpness.panels; "
            "print(len(sharpness.panels.TABLE))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(len(TABLE)), done.stderr


def test_weight_says_how_batches_count(folder, capsys):
    """Batches padded to several lengths: the refusal names tokens, and --weight takes them, or a function."""
    words = of(folder, "--loss", f"{folder}:token_loss", "--metrics", "trace", data="tokens")
    status, _, err = run(capsys, *words)
    assert status == 2 and "weight='tokens'" in err
    assert run(capsys, *words, "--weight", "tokens")[0] == 0 and run(capsys, *words, "--weight", "examples")[0] == 0
    status, _, err = run(capsys, *words, "--weight", "pixels")
    assert status == 2 and "'pixels'" in err


def test_a_device_that_is_not_there(folder, capsys):
    status, _, err = run(capsys, *of(folder, "--device", "meta:nowhere"))
    assert status == 2 and err.startswith("error: --device meta:nowhere: the model cannot be moved there")
