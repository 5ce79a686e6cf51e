"""What the project publishes of a study: records as Parquet, verdicts, tables, figures, and their place in the README."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.draw import draw_all
from analysis.load import TABLES, Tables, from_published
from analysis.report import deviations, every_table
from analysis.tables import render
from analysis.verdicts import Verdict, verdicts
from experiments.lab.files import StoreError, to_json, write_atomic

ROOT = Path(__file__).resolve().parents[1]


def publish(tables: Tables, figures: Path = ROOT / "figures", readme: Path = ROOT / "README.md") -> list[Path]:
    """Write `tables` and all that follows from them below `figures`, and renew the README; returns the files.

    Everything but the Parquet files is made from these, read back, so that it is what a reader can make of them.
    Raises `StoreError` while runs or measurements are missing.
    """
    if tables.missing_runs or tables.missing_measurements:
        raise StoreError(
            f"{tables.study.name} lacks {tables.missing_runs} runs and {tables.missing_measurements} measurements at scale "
            f"{tables.scale}; finish it with `python -m experiments run {tables.study.name} --scale {tables.scale}`"
        )
    folder = figures / tables.study.name / tables.scale
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in TABLES:
        written.append(folder / f"{name}.parquet")
        write_atomic(written[-1], _parquet(pa.Table.from_pandas(getattr(tables, name), preserve_index=False)))
    published = from_published(folder)
    found = verdicts(published)
    written.append(folder / "verdicts.json")
    write_atomic(written[-1], to_json([verdict.to_dict() for verdict in found]))
    for table in every_table(published, found):
        for form in ("md", "csv", "tex"):
            written.append(folder / f"table_{table.name}.{form}")
            write_atomic(written[-1], render(table, form).encode())
    written += [Path(file) for drawn in draw_all(published, folder) for file in drawn.files]
    write_atomic(readme, renewed(readme.read_text(), published, found).encode())
    return [*written, readme]


def renewed(text: str, tables: Tables, found: Sequence[Verdict]) -> str:
    """The README with the generated blocks of this study and scale filled in anew."""
    text = _fill(text, f"{tables.study.name}-{tables.scale}", readme_block(tables, found))
    return _fill(text, f"{tables.study.name}-deviations", "\n".join(f"- {line}" for line in deviations(tables.study)))


def readme_block(tables: Tables, found: Sequence[Verdict]) -> str:
    """The tables that the README shows, in Markdown."""
    return "\n\n".join(f"{render(table, 'md').rstrip()}\n\n*{table.title}*" for table in every_table(tables, found))


def _fill(text: str, name: str, block: str) -> str:
    begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n\n{block}\n\n{end}", text)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd", compression_level=9)
    return buffer.getvalue()
