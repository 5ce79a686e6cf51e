"""The command line: `python -m analysis`. Reads records and study declarations; never trains.

Exit status: 0 finished, 1 runs or measurements are missing, 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from experiments.lab.config import ConfigError
from experiments.lab.datasets import DataError
from experiments.lab.files import StoreError, write_atomic
from experiments.lab.plan import UsageError, check_scale, find_study, studies
from experiments.lab.store import Store
from experiments.lab.study import Request

if TYPE_CHECKING:
    from analysis.agree import Comparison
    from analysis.load import Tables
    from analysis.verdicts import Verdict
    from experiments.lab.study import Study

PUBLISHED = Path(__file__).resolve().parents[1] / "figures"


@dataclass(frozen=True, kw_only=True)
class Options:
    study: tyro.conf.Positional[str]
    """name of a study, or `all`"""
    scale: str
    """quick, laptop, overnight, gpu or paper"""
    store: Path = Path(os.environ.get("BATCHLAB_STORE", "store"))
    """folder of the runs (default: $BATCHLAB_STORE, else ./store)"""
    published: bool = False
    """read what the project publishes instead of a store"""
    json: bool = False
    """print one JSON document on stdout and nothing else"""


@dataclass(frozen=True, kw_only=True)
class Verdicts(Options):
    """Answer the claims."""


@dataclass(frozen=True, kw_only=True)
class Figures(Options):
    """Draw the figures, below the store."""

    pilot: bool = False
    """of pilot runs (`python -m experiments run ... --pilot`)"""
    seeds: int | None = None
    """pilot seeds per cell"""


@dataclass(frozen=True, kw_only=True)
class Pilot(Options):
    """What pilot runs say of each claim: spread, effect, and the power of a number of seeds. No verdicts."""

    pilot: tyro.conf.Suppress[bool] = True
    seeds: int | None = None
    """pilot seeds per cell, as they were run (default: as the study declares)"""


@dataclass(frozen=True, kw_only=True)
class Tabulate(Options):
    """Print the tables: the verdicts, every cell, ours beside the paper's."""


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """Verdicts, tables and figures in one document, below the store."""


@dataclass(frozen=True, kw_only=True)
class Histories(Options):
    """Write every row of the histories, with mean and spread over seeds, as Parquet below the store."""


@dataclass(frozen=True, kw_only=True)
class Publish(Options):
    """Write records, tables and figures into figures/, and renew the boards and the README."""


COMMANDS = {"verdicts": Verdicts, "figures": Figures, "tables": Tabulate, "report": Report, "pilot": Pilot,
            "histories": Histories, "publish": Publish}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status. Errors of the user become one sentence on stderr."""
    try:
        options = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m analysis", description=__doc__, args=argv)
        if isinstance(options, Histories):
            return _export(options)
        incomplete, documents = 0, []
        for tables in _tables(options):
            text, document = _answer(options, tables)
            documents.extend(document)
            if not options.json:
                print(text)
            if tables.missing_runs or tables.missing_measurements:
                incomplete = 1
                where = "" if options.published else f" --store {options.store}"
                _complain(
                    f"{tables.missing_runs} runs and {tables.missing_measurements} measurements of {tables.study.name} are "
                    f"missing; `python -m experiments run {tables.study.name} --scale {tables.scale}{where}` makes them"
                )
        if options.json:
            print(json.dumps(documents, indent=1, sort_keys=True))
        return incomplete
    except (UsageError, ConfigError) as error:
        return _complain(str(error), 2)
    except (StoreError, DataError, OSError) as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return 130


def _export(options: Histories) -> int:
    """Histories may be larger than the memory, so that nothing else is read with them."""
    from analysis.history import export
    from analysis.load import stages_in

    if options.published:
        raise UsageError("histories are read from a store; the published ones are figures/<study>/<scale>/history.parquet")
    written, missing, store = [], 0, Store(options.store, create=False)
    for study in _studies(options):
        stages = stages_in(study, Request(options.scale), store)
        records = [record for stage in stages for record in stage.records if record is not None]
        written += export(store, records, _folder(options, "store", study.name))
        if absent := sum(stage.at_most for stage in stages) - len(records):
            missing += absent
            _complain(f"{absent} runs of {study.name} are missing; `python -m experiments run {study.name} --scale "
                      f"{options.scale} --store {options.store}` makes them")  # fmt: skip
    if options.json:
        print(json.dumps([{"written": str(path)} for path in written], indent=1))
    else:
        print("\n".join(f"written: {path}" for path in written))
    return int(missing > 0)


def _tables(options: Options) -> Iterator[Tables]:
    """The records of the study asked for, or of `all` that have the scale."""
    from analysis.load import from_published, from_store

    for study in _studies(options):
        if options.published:
            yield from_published(PUBLISHED / study.name / options.scale)
        else:
            request = None
            if isinstance(options, (Figures, Pilot)) and options.pilot:
                request = Request(options.scale, options.seeds, pilot=True)
            yield from_store(study, options.scale, Store(options.store, create=False), request)


def _studies(options: Options) -> list[Study]:
    if options.study == "all":
        chosen = [study for study in studies().values() if options.scale in {scale.name for scale in study.scales}]
    else:
        chosen = [find_study(options.study)]
        check_scale(chosen[0], options.scale)
    if not chosen:
        raise UsageError(f"no study has a scale {options.scale!r}; `python -m experiments` lists the studies and scales")
    return chosen


def _answer(options: Options, tables: Tables) -> tuple[str, list[Any]]:
    """Text for a person and a list of JSON objects, for one study."""
    from analysis import draw, pilot, publish, report
    from analysis import tables as text_tables
    from analysis.load import from_store
    from analysis.verdicts import verdicts

    if isinstance(options, Pilot):
        rows = pilot.rows(tables)
        return pilot.text(rows), rows
    found = verdicts(tables)
    match options:
        case Verdicts():
            compared = _compared(options, tables, found)
            return _said(found, compared), _beside(found, compared)
        case Tabulate():
            listed = report.every_table(tables, found)
            text = "\n".join(f"{t.title}\n\n{text_tables.render(t, 'md')}" for t in listed)
            return text, [{"table": t.name, "columns": t.columns, "rows": t.rows} for t in listed]
        case Figures():
            drawn = draw.draw_all(tables, _folder(options, tables.source, tables.study.name))
            return "\n".join(_drawn_line(d) for d in drawn), [vars(d) for d in drawn]
        case Report():
            folder = _folder(options, tables.source, tables.study.name)
            drawn = draw.draw_all(tables, folder)
            path = folder / "report.md"
            write_atomic(path, report.markdown(tables, found, drawn).encode())
            compared = _compared(options, tables, found)
            text = "\n".join([*(_drawn_line(d) for d in drawn), f"report: {path}", "", _said(found, compared)])
            document = {"report": str(path), "verdicts": _beside(found, compared), "figures": [vars(d) for d in drawn]}
            return text, [document]
        case Publish():
            if options.published:
                raise UsageError("publish reads a store; leave out --published")
            store, asked = Store(options.store, create=False), Request(options.scale, pilot=True)
            pilots = from_store(tables.study, options.scale, store, asked)
            written = publish.publish(tables, PUBLISHED, pilots=pilots)
            return "\n".join(f"written: {path}" for path in written), [{"written": [str(path) for path in written]}]
    raise AssertionError(f"no answer to {type(options).__name__}")


def _compared(options: Options, tables: Tables, found: list[Verdict]) -> Comparison:
    """The verdicts of a store beside the published ones; empty where there are none of this study and scale."""
    from analysis.agree import Comparison, with_published

    if options.published or not tables.study.module.startswith("experiments."):
        return Comparison()
    try:
        return with_published(tables, found, PUBLISHED / tables.study.name / tables.scale)
    except (UsageError, ValueError, KeyError) as error:  # a reader's own results do not hang on what is published
        _complain(f"what is published of {tables.study.name} cannot be compared: {error}")
        return Comparison()


def _said(found: list[Verdict], compared: Comparison) -> str:
    """The verdicts, and how they compare."""
    from analysis.agree import text
    from analysis.tables import verdict_lines

    return "\n\n".join([verdict_lines(found), *([text(compared)] if compared.claims else [])])


def _beside(found: list[Verdict], compared: Comparison) -> list[dict[str, Any]]:
    """The verdicts as JSON; those of a store with what is published (null: nothing)."""
    theirs = {each.yours.claim: each.to_dict() for each in compared.claims}
    return [v.to_dict() | ({} if v.source == "published" else {"published": theirs.get(v.claim)}) for v in found]


def _folder(options: Options, source: str, study: str) -> Path:
    """Where local figures and tables go: below the store, never into figures/."""
    folder = options.store / "reports" / source / study / options.scale
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _drawn_line(drawn: Any) -> str:
    where = f": {drawn.files[1]}" if drawn.files else f": {drawn.reason}"
    return f"figure {drawn.name} ({drawn.state}){where}"


def _complain(sentence: str, status: int = 1) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
