"""One figure per file: `settings()` are its options, `load_data` its tidy data, `make_figure` draws exactly that data."""

from __future__ import annotations

from dataclasses import dataclass


class NoDataError(ValueError):
    """There is nothing to draw; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Drawn:
    """What became of one figure: `drawn`, `unchanged`, or `no data` with the sentence that says so."""

    name: str
    state: str
    files: tuple[str, ...] = ()
    reason: str | None = None
