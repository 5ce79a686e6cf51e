"""The guide to a study of one's own: one file and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
(CODE,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_study.md").read_text(), flags=re.DOTALL)
STUDY = ("example2026", "--scale", "quick")


def run(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", *words, "--store", str(folder / "store"), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_example_is_a_whole_study(tmp_path: Path) -> None:
    """A reader who follows the guide would get no verdict, or a study would need a second file."""
    assert len(CODE.strip().splitlines()) <= 40
    for package in ("experiments", "analysis", "sharpness"):
        (tmp_path / package).mkdir()
        for path in (ROOT / package).iterdir():
            (tmp_path / package / path.name).symlink_to(path)
    (tmp_path / "experiments" / "example2026.py").write_text(CODE)
    run(tmp_path, "experiments", "run", *STUDY)
    (verdict,) = json.loads(run(tmp_path, "analysis", "verdicts", *STUDY))
    assert (verdict["verdict"], verdict["n_seeds"], verdict["claim"]) == ("reproduced", 8, "learns-less")
    drawn = json.loads(run(tmp_path, "analysis", "figures", *STUDY))
    assert len(drawn) == 2  # its own, and the effects that every study has
    assert all(figure["state"] == "drawn" and Path(figure["files"][1]).is_file() for figure in drawn)
