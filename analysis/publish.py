"""What the project publishes of a study: records as Parquet, verdicts, tables, figures, and the boards."""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import agree, margins, publishable, swap
from analysis.draw import FORMS, draw_all, figures_of
from analysis.figures.forest import frame, make_figure
from analysis.load import TABLES, Tables, from_published
from analysis.report import every_table, markdown
from analysis.style import save
from analysis.tables import render, verdict_lines
from analysis.verdicts import Verdict, verdicts
from experiments.lab.declare.checkout import FIGURES, README
from experiments.lab.store import published_settings as settings
from experiments.lab.store.files import StoreError, to_json, write_atomic
from experiments.lab.sweep import board

BOARD = "# The board"
"""first words of a published board"""


def publish(
    tables: Tables, figures: Path = FIGURES, readme: Path | None = README, *, pilots: Tables | None = None
) -> list[Path]:
    """Write `tables` and all that follows from them below `figures`, and renew the README (default: a folder of the user's, whose
    board links to nothing outside it); returns the files. `pilots` are the study's pilot runs, as far as there are any. Raises
    `StoreError` for what `analysis.publishable` does not let pass."""
    _complete(tables)
    try:
        publishable.refuse(tables, pilots, project=figures.resolve() == FIGURES)
    except ValueError as error:
        raise StoreError(f"{tables.study.name} cannot be judged: {error}") from error
    return write(tables, figures, readme)


def write(tables: Tables, figures: Path, readme: Path | None) -> list[Path]:
    """As `publish`, without asking where the records come from: for rehearsals.

    Everything but the Parquet files is made from these, read back, so that it is what a reader can make of them. The page is
    prepared beside its place and then exchanged with it, so that after a kill the old one or the new one is whole; the boards
    and the README are made of all pages, and the next call renews them.
    """
    _complete(tables)
    text = None if readme is None else readme.read_text("utf-8")
    place = figures / tables.study.name / tables.scale
    if readme is None:
        _nothing_of_others(figures, place)
    figures.mkdir(parents=True, exist_ok=True)
    swap.clear(figures)
    with tempfile.TemporaryDirectory(prefix=swap.UNDER_WAY, dir=figures) as name:
        page = Path(name) / tables.study.name / tables.scale
        page.mkdir(parents=True)
        written = [place / file for file in _page(tables, page, place)]
        swap.swap(page, place)
    verdicts_of_all = board.published(figures)
    boards = {"README.md": full_board(verdicts_of_all, "../" if readme else None).encode(), **picture(verdicts_of_all)}
    for name, content in boards.items():
        written.append(figures / name)
        write_atomic(written[-1], content)
    if readme is None or text is None:
        return written
    write_atomic(readme, renewed(text, verdicts_of_all).encode())
    return [*written, readme]


def _page(tables: Tables, page: Path, old: Path) -> list[str]:
    """Write all files of one study and scale into `page`; returns their names. Figures of `old` that would not change stay."""
    write_atomic(page / settings.FILE, settings.content([(run.stage, run.config) for run in tables.planned]))
    kept = _without_spare_bits(tables)
    for name in TABLES:
        write_atomic(page / f"{name}.parquet", _parquet(pa.Table.from_pandas(getattr(kept, name), preserve_index=False)))
    published = from_published(page, tables.study)
    found = verdicts(published)
    publishable.verdictless(published, found)
    write_atomic(page / "verdicts.json", to_json([verdict.to_dict() for verdict in found]))
    for table in every_table(published, found):
        for form in ("md", "csv", "tex"):
            write_atomic(page / f"table_{table.name}.{form}", render(table, form).encode())
    for file in (f"{figure.name}.{form}" for figure in figures_of(tables.study, tables.scale) for form in FORMS):
        if (old / file).is_file():
            shutil.copyfile(old / file, page / file)
    try:
        drawn = draw_all(published, page)
    except (ImportError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"a figure of {tables.study.name} cannot be drawn ({error}); correct what it names") from error
    publishable.undrawn(published, drawn)
    write_atomic(page / "README.md", markdown(replace(published, imported=tables.imported), found, drawn).encode())
    return sorted(file.name for file in page.iterdir())


def _nothing_of_others(figures: Path, place: Path) -> None:
    """Raise `StoreError` where publishing into a folder of the user's would replace what publishing did not write."""
    page = figures / "README.md"
    if page.exists() and not page.read_text("utf-8", "replace").startswith(BOARD):
        raise StoreError(f"{page} is no board that was published before, and would be replaced; choose another --to")
    ours = {"README.md", settings.FILE, "verdicts.json", *(f"{name}.parquet" for name in TABLES)}
    ours |= {f"table_{name}.{form}" for name in ("verdicts", "cells", "paper") for form in ("md", "csv", "tex")}
    drawn = (path.stem for path in place.glob("*.json") if b'"code_sha256"' in path.read_bytes())
    ours |= {f"{name}.{form}" for name in drawn for form in FORMS}
    there = {path.name for path in place.iterdir()} if place.is_dir() else set()
    if other := sorted(there - ours):
        raise StoreError(f"{place / other[0]} was not published, and would be removed; move it, or choose another --to")


def _complete(tables: Tables) -> None:
    """Raise `StoreError` while runs or measurements are missing."""
    if tables.missing_runs or tables.missing_measurements:
        raise StoreError(
            f"{tables.study.name} lacks {tables.missing_runs} runs and {tables.missing_measurements} measurements at scale "
            f"{tables.scale}; `python -m experiments run` with the same study, scale and store finishes it"
        )


def _without_spare_bits(tables: Tables) -> Tables:
    """Bits per test example only of the runs that a verdict resamples: they do not compress, and nothing else reads them."""
    used = {run_id for verdict in verdicts(tables) if verdict.both_low is not None for run_id in verdict.runs}
    return replace(tables, correct=tables.correct[tables.correct["run_id"].isin(used)])


def full_board(found: board.Verdicts, root: str | None = "../") -> str:
    """figures/README.md: the primary claims, then every published verdict; `root` is the way to the project's root, if any."""
    primary = [verdict for verdict in found if verdict["primary"]]
    about = f"{summary(found, root)} Each study's page has its tables, figures, power and deviations."
    if root is not None:
        about += f" See also [what a verdict means]({root}docs/verdicts.md) and [what it comes to]({root}docs/findings.md)."
    if not found:
        return f"{BOARD}\n\nNo study here tests a claim; each has a page of its own.\n"
    drawn = "![The effect of every primary claim with its intervals, in units of the claim's margin](board.png)"
    parts = [
        BOARD, about, *([drawn, f"*{PICTURE}*"] if primary else []),
        "## Primary claims", ABOUT, board.markdown(primary), "## All claims", board.markdown(found),
    ]
    return "\n\n".join(parts) + "\n"


def summary(found: board.Verdicts, root: str | None = "") -> str:
    """How the claims were answered, and how many answers hang on their margins; `root` is the way to the project's root."""
    by_interval = [v for v in found if margins.holding(v) is not None]
    steady = sum(margins.at(v, 0.5 * v["margin"]) == margins.at(v, 2 * v["margin"]) == v["verdict"] for v in by_interval)
    return (
        f"{len(found)} published verdicts, from {len({v['study'] for v in found})} studies: {board.tally(found)}. "
        f"{steady} of the {len(by_interval)} verdicts that an interval decided would be the same at half and at twice their "
        + ("margins." if root is None else f"margins ([which would not]({root}notebooks/02_who_is_right.ipynb)).")
    )


def picture(found: board.Verdicts) -> dict[str, bytes]:
    """The effects of all primary claims as files: the figure, and its values. None without primary claims."""
    if not (primary := [verdict for verdict in found if verdict["primary"]]):
        return {}
    data = frame(primary, studies=True)
    files = {f"board.{form}": save(make_figure(data), form) for form in ("pdf", "png")}
    return {**files, "board.csv": data.to_csv(index=False, lineterminator="\n").encode()}


def renewed(text: str, found: board.Verdicts) -> str:
    """The README with its blocks filled in anew: how all claims were answered, and what `make reproduce` prints."""
    reproduced = [Verdict(**v) for v in found if (v["study"], v["scale"]) == ("keskar2017", "quick")]
    same = agree.Comparison(tuple(agree.Agreement(v.to_dict(), v, agree.SAME, "") for v in reproduced))
    text = _fill(text, "reproduce", f"```text\n{verdict_lines(reproduced)}\n\n{agree.text(same)}\n```")
    return _fill(text, "board", summary(found))


PICTURE = (
    "Every primary claim, in units of its margin, the smallest effect worth speaking of, fixed before the runs (for ratios both "
    "are logarithms). A difference (disc) is no effect where its thick line, the 90% interval, lies within the grey band, else "
    "reproduced where its thin one lies right of 0. Equality (square) is reproduced where the thick line lies within the band, "
    '"no worse" (triangle) where it lies right of −1. Each study\'s page gives the margins for which a verdict would be the same.'
)
ABOUT = (
    "Positive effects (factors above 1) are on the paper's side; intervals speak of seeds on this test set (of families or "
    "clusters of runs, where n counts those), Holm-adjusted except for primary claims. "
    "A verdict speaks of this task and this scale."
)


def _fill(text: str, name: str, block: str) -> str:
    begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n\n{block}\n\n{end}", text)


def _parquet(table: pa.Table) -> bytes:
    """As small as Parquet gets: without statistics, and with dictionaries only where values recur."""
    recurring: Any = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd", compression_level=19,
                   use_dictionary=recurring, write_statistics=False, store_schema=False)
    return buffer.getvalue()
