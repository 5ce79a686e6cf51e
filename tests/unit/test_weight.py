"""What the repository weighs: a clone is quick, pages load, and the studies to come have room."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from analysis.style import PNG_BYTES

ROOT = Path(__file__).resolve().parents[2]
TOTAL, SCALE = 25_000_000, 300_000
HEAVIER = {"goyal2017/quick": 350_000, "hoffer2017/quick": 350_000, "jastrzebski2018/quick": 350_000, "jiang2020/laptop": 370_000,
           "jiang2020/quick": 460_000, "keskar2017/laptop": 390_000, "keskar2017/quick": 550_000, "shallue2019/laptop": 340_000,
           "shallue2019/quick": 340_000, "smith2020/laptop": 530_000, "smith2020/quick": 460_000, "zhang2019/quick": 330_000}
"""scales that may weigh more: hundreds of runs, long histories, or many figures"""


@pytest.fixture(scope="module")
def sizes() -> dict[Path, int]:
    """Bytes of every tracked file."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    if listed.returncode or not files:
        pytest.skip("not a git checkout")
    return {file: file.stat().st_size for file in files if file.is_file()}


def test_all_tracked_files(sizes: dict[Path, int]) -> None:
    """A clone of a small tool that takes minutes."""
    assert sum(sizes.values()) <= TOTAL


def test_pictures_of_pages(sizes: dict[Path, int]) -> None:
    """A page that a reader waits for."""
    pages = [file for file in sizes if file.suffix == ".md"]
    shown = {(page.parent / name).resolve() for page in pages for name in re.findall(r"\]\(([^):]+\.png)\)", page.read_text())}
    assert len(shown) > 50
    assert {str(file): file.stat().st_size for file in shown if file.stat().st_size > PNG_BYTES} == {}


def test_published_scales(sizes: dict[Path, int]) -> None:
    """One study that takes the room of ten."""
    weights: Counter[str] = Counter()
    for file, size in sizes.items():
        if (place := file.relative_to(ROOT).parts)[0] == "figures" and len(place) == 4:
            weights[f"{place[1]}/{place[2]}"] += size
    assert weights and {scale: size for scale, size in weights.items() if size > HEAVIER.get(scale, SCALE)} == {}
