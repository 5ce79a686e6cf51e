"""Where the project lies: its folders, told here alone. The harness runs from a checkout; the wheel has `sharpness` alone."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FIGURES = ROOT / "figures"
"""the published records and all that is drawn from them"""
README = ROOT / "README.md"


def inside(folder: Path) -> bool:
    """Whether `folder` lies in a checkout, whose published records and README it may renew."""
    return README.is_file() and folder.resolve().is_relative_to(ROOT)
