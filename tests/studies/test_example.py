"""The guide to a study of one's own: one file in a folder of one's own, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from experiments.lab.store.provenance import commit

ROOT = Path(__file__).resolve().parents[2]
(CODE,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_study.md").read_text(), flags=re.DOTALL)
STUDY = ("example2026", "--scale", "quick")


def run(folder: Path, *words: str) -> str:
    where = ["--studies", "studies", "--store", "store", "--json"]
    done = subprocess.run([sys.executable, "-m", *words, *where], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_example_is_a_whole_study(tmp_path: Path) -> None:
    """A reader who follows the guide would get no verdict, would need a second file, or would write into the project."""
    assert len(CODE.strip().splitlines()) <= 40
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "example2026.py").write_text(CODE)
    run(tmp_path, "experiments", "run", *STUDY)
    (verdict,) = json.loads(run(tmp_path, "analysis", "verdicts", *STUDY))
    assert (verdict["verdict"], verdict["n_seeds"], verdict["claim"]) == ("reproduced", 8, "learns-less")
    drawn = json.loads(run(tmp_path, "analysis", "figures", *STUDY))
    assert len(drawn) == 2  # its own, and the effects that every study with claims has
    assert all(figure["state"] == "drawn" and Path(tmp_path, figure["files"][1]).is_file() for figure in drawn)
    if (commit() or "").endswith("+"):
        return  # work under way: publish would refuse its runs
    (published,) = json.loads(run(tmp_path, "analysis", "publish", *STUDY, "--to", "results"))
    assert all(Path(tmp_path, file).is_file() and file.startswith("results") for file in published["written"])
    assert "No paper's claim, an example." in (tmp_path / "results" / "example2026" / "quick" / "README.md").read_text()
    board = (tmp_path / "results" / "README.md").read_text()
    assert verdict["sentence"] in board and "](../" not in board  # no link out of the user's folder
