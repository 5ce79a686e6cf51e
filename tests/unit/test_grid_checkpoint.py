"""A grid that was killed goes on where it was, to the same bits, and never with points of another one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sharpness.landscape.directions import random_direction
from sharpness.landscape.grid import slice_2d
from sharpness.landscape.slices import slice_1d

torch.set_num_threads(1)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    model(torch.randn(30, 4))
    return model


def data(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 4, generator=generator), torch.randint(0, 3, (12,), generator=generator)


class Counting:
    """Cross-entropy that counts its evaluations of a whole point, and is killed at one. No module: its attributes would be
    put back."""

    def __init__(self, kill_at: float = np.inf) -> None:
        self.calls, self.kill_at = 0, kill_at

    def __call__(self, outputs, targets):
        self.calls += 1
        if self.calls >= self.kill_at:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, targets)


def overhead(run) -> int:
    """Calls before the first point of `run(loss, checkpoint)`: those of a grid that is finished."""
    with tempfile.TemporaryDirectory() as folder:
        run(Counting(), f"{folder}/grid")
        finished = Counting()
        run(finished, f"{folder}/grid")
    return finished.calls


def grid(loss, checkpoint=None, model=None, **change):
    model = model or net()
    options = {
        "directions": [random_direction(model, s) for s in (0, 1)],
        "alphas": [-0.5, 0.0, 0.5],
        "betas": [0.0, 1.0, 1e38, 2.0],
        "batch_size": 12,
    }
    pair = change.pop("pair", data())
    return slice_2d(model, loss, pair, checkpoint=checkpoint, **(options | change))


@pytest.mark.parametrize("options", [{}, {"mode": "train"}, {"batch_size": 5}])
@pytest.mark.parametrize("killed_after", [0, 1, 7])
def test_resumed_equals_uninterrupted_and_measures_only_what_is_missing(tmp_path, killed_after, options):
    whole = grid(Counting(), **options)
    assert np.isfinite(whole.losses[:, 3]).all()
    assert whole.status == ("ok" if "mode" in options else "nonfinite")  # in train mode the scale divides out
    path = tmp_path / "grid.txt"
    batches, before = 3 if options.get("batch_size") == 5 else 1, overhead(lambda loss, path: grid(loss, path, **options))
    with pytest.raises(KeyboardInterrupt):
        grid(Counting(before + killed_after * batches + 1), path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.txt"]
    counting = Counting()
    resumed = grid(counting, path, **options)
    assert counting.calls == before + (12 - killed_after) * batches
    assert resumed.resumed == killed_after and resumed.evaluations == 12 - killed_after
    for name in ("losses", "accuracies"):
        assert getattr(resumed, name).tobytes() == getattr(whole, name).tobytes()
    again = Counting()
    finished = grid(again, path, **options)
    assert again.calls == before and finished.evaluations == 0
    assert finished.losses.tobytes() == whole.losses.tobytes()


def test_recalibrated_grid_resumes_to_the_same_bits(tmp_path):
    """Statistics left over from the point before would depend on where the grid was killed."""
    options = {"bn_mode": "recalibrate", "calibration": data(5)}
    whole = grid(Counting(), **options)
    before = overhead(lambda loss, path: grid(loss, path, **options))
    with pytest.raises(KeyboardInterrupt):
        grid(Counting(before + 5), tmp_path / "g", **options)
    resumed = grid(Counting(), tmp_path / "g", **options)
    assert 0 < resumed.resumed < 12 and resumed.losses.tobytes() == whole.losses.tobytes()


def test_a_torn_file_is_measured_anew(tmp_path):
    """A part of a file would be taken for the whole, or stop the measurement for good."""
    path = tmp_path / "grid.txt"
    whole = grid(Counting(), path)
    content = path.read_bytes()
    for length in range(0, len(content), 83):
        path.write_bytes(content[:length])
        found = grid(Counting(), path)
        assert found.losses.tobytes() == whole.losses.tobytes() and path.read_bytes() == content, length
        assert found.resumed == 0


def test_every_flipped_bit_is_found(tmp_path):
    """A flipped digit of a loss is a number as good as any other."""
    path = tmp_path / "grid.txt"
    whole = grid(Counting(), path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(0, 90, 9), *rng.integers(0, len(content), 40)]:
        broken = bytearray(content)
        broken[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(broken))
        try:
            found = grid(Counting(), path)
        except ValueError as error:
            assert "not a file of grid points" in str(error) and place < 16
            continue
        assert found.resumed == 0 and found.losses.tobytes() == whole.losses.tobytes(), place


def test_points_of_another_grid_are_refused(tmp_path):
    path = tmp_path / "grid.txt"
    whole = grid(Counting(), path)
    other = [random_direction(net(), s) for s in (0, 2)]
    for change in [
        {"directions": other},
        {"alphas": [-0.5, 0.0, 0.6]},
        {"betas": [0.0, 1.0]},
        {"model": net(1)},
        {"mode": "train"},
        {"bn_mode": "recalibrate"},
        {"seed": 1},
        {"pair": data(2)},
        {"batch_size": 5},
    ]:
        with pytest.raises(ValueError, match="another grid"):
            grid(Counting(), path, **change)
    with pytest.raises(ValueError, match="another grid"):
        grid(nn.functional.cross_entropy, path)
    smoothed = type("Counting", (Counting,), {"__call__": lambda self, o, t: 1.1 * Counting.__call__(self, o, t)})
    with pytest.raises(ValueError, match="loss of the first batch"):
        grid(smoothed(), path)
    activation = net()
    activation[2] = nn.Tanh()
    with pytest.raises(ValueError, match="loss of the first batch"):
        grid(Counting(), path, model=activation)
    assert grid(Counting(), path).losses.tobytes() == whole.losses.tobytes()


def test_a_fresh_model_may_resume_for_a_given_centre(tmp_path):
    """After a restart the model is built anew: its own weights are not on the plane."""
    centre, path = net(), tmp_path / "g"
    options = {"center": centre.state_dict(), "directions": [random_direction(centre, s) for s in (0, 1)]}
    first = grid(Counting(), path, model=net(1), **options)
    again = grid(Counting(), path, model=net(2), **options)
    assert again.resumed == 12 and again.losses.tobytes() == first.losses.tobytes()


def test_a_users_file_is_not_overwritten(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80precious")
    with pytest.raises(ValueError, match="not a file of grid points"):
        grid(Counting(), path)
    assert path.read_bytes() == b"\x80precious"
    with pytest.raises(ValueError, match="folder that does not exist"):
        grid(Counting(), Path(tmp_path / "nowhere" / "grid"))


def test_a_line_is_resumed_too(tmp_path):
    a, b, path = net(1).state_dict(), net(2).state_dict(), tmp_path / "line"
    options = {"start": a, "end": b, "alphas": np.linspace(-1, 2, 7)}
    whole = slice_1d(net(), Counting(), data(), **options)
    before = overhead(lambda loss, path: slice_1d(net(), loss, data(), checkpoint=path, **options))
    with pytest.raises(KeyboardInterrupt):
        slice_1d(net(), Counting(before + 4), data(), checkpoint=path, **options)
    resumed = slice_1d(net(), Counting(), data(), checkpoint=path, **options)
    assert resumed.resumed == 3 and resumed.losses.tobytes() == whole.losses.tobytes()
    with pytest.raises(ValueError, match="another grid"):
        slice_1d(net(), Counting(), data(), checkpoint=path, curve="arc", **options)


class Drifting(nn.Module):
    """Writes to its buffer at each pass, and its output depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x):
        self.passes = self.passes + 1
        return x * self.passes


def test_no_point_depends_on_those_before_it():
    """Buffers carried on from point to point: a resumed grid would be another one."""
    model = nn.Sequential(nn.Linear(4, 3), Drifting())
    options = {"model": model, "directions": [random_direction(model, s) for s in (0, 1)]}
    found = grid(Counting(), **options, alphas=[0.5, 0.5], betas=[0.0, 0.0])
    assert len(np.unique(found.losses)) == 1
    ends = {"start": model.state_dict(), "end": nn.Sequential(nn.Linear(4, 3), Drifting()).state_dict()}
    for state in ends.values():
        state.pop("1.passes")
    line = slice_1d(model, Counting(), data(), alphas=[0.5, 0.5], **ends)
    assert len(np.unique(line.losses)) == 1
