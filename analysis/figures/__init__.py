"""One figure per file: `settings()` are its options, `load_data` its tidy data, `make_figure` draws exactly that data."""

from __future__ import annotations


class NoDataError(ValueError):
    """There is nothing to draw; the message is one sentence with the remedy."""
