"""The script that compares two commits' weights, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from guards.same_weights import differences, digest, main
from safetensors.numpy import save_file


def test_every_difference_is_a_line() -> None:
    """A run that only one commit plans, or trains to other weights, would pass for the same."""
    lines = differences({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"})
    assert [line[0] for line in lines] == ["b", "c", "d"] and differences({"a": "1"}, {"a": "1"}) == []


def test_digest_is_of_the_weights(tmp_path: Path) -> None:
    """One bit more in one weight would go unseen, or a file's metadata count as weights."""
    w = np.ones(3, np.float32)
    for name, tensors, metadata in (("a", {"w": w}, {"by": "one"}), ("b", {"w": w}, None),
                                    ("c", {"w": np.nextafter(w, 2)}, None), ("d", {"v": w}, None)):
        save_file(tensors, tmp_path / name, metadata)
    a, b, c, d = (digest(tmp_path / name) for name in "abcd")
    assert a == b and len({b, c, d}) == 3


def test_unknown_commit_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, or status 0 for nothing compared."""
    assert main(["no-such-commit", "HEAD"]) == 2
    assert capsys.readouterr().err == "error: there is no commit 'no-such-commit'\n"
