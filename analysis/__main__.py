"""Reads records and studies, and answers the claims. Never trains.

With shallue2019, --store may be the unpacked archive of
  google-research/batch_science: a study.json per batch size, and per trial
  a metadata.json and a measurements.csv.

Exit status:
  0    finished
  1    something failed or is missing (runs, measurements)
  2    wrong usage
  141  nobody reads the output any more (`| head`)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from analysis.figures import Drawn, NoDataError
from experiments.lab.datasets import DataError
from experiments.lab.declare.checkout import FIGURES, README, inside
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.declare.finding import search
from experiments.lab.declare.study import Request
from experiments.lab.store.files import StoreError, write_atomic
from experiments.lab.store.records import Store
from experiments.lab.sweep import flags, terminal
from experiments.lab.sweep.commands import MAX_SEEDS
from experiments.lab.sweep.flags import OptionalFloat, OptionalInt, OptionalPath, Switch
from experiments.lab.sweep.own_tasks import Noted
from experiments.lab.sweep.plan import BrokenStudyError, asked_for, check_names, find_study, folder_of_studies, scale_of

if TYPE_CHECKING:
    from analysis.agree import Comparison
    from analysis.load import Tables
    from analysis.replication import Replications
    from analysis.verdicts import Verdict
    from experiments.lab.declare.study import Study


@dataclass(frozen=True, kw_only=True)
class Options(flags.Task):
    study: tyro.conf.Positional[str]
    """name of a study or of a sweep in the store, or `all`"""
    scale: Annotated[str, tyro.conf.arg(metavar="STR", help_behavior_hint="")] = ""
    """quick, laptop, overnight, gpu or paper, or another scale of the study's (default: its only one, if it has one)"""
    studies: OptionalPath = None
    """folder of your own studies (default: $BATCHLAB_STUDIES, else none)"""
    store: Path = Path(os.environ.get("BATCHLAB_STORE") or "store")
    """folder of the runs, or of tables from elsewhere (study.json, measurements.csv); or set $BATCHLAB_STORE"""
    goal: OptionalFloat = None
    """of tables from elsewhere: the error to reach (default: the authors' of Figure 1, else what every batch size reaches)"""
    published: Switch = False
    """read what the project publishes instead of a store"""
    json: Switch = False
    """print one JSON document on stdout and nothing else"""


@dataclass(frozen=True, kw_only=True)
class Verdicts(Options):
    """Answer the claims."""


@dataclass(frozen=True, kw_only=True)
class Figures(Options):
    """Draw the figures, below the store."""

    pilot: Switch = False
    """of pilot runs (`python -m experiments run ... --pilot`)"""
    seeds: OptionalInt = None
    """pilot seeds per cell (default: as the study declares)"""


@dataclass(frozen=True, kw_only=True)
class Pilot(Options):
    """What pilot runs say of each claim: spread, effect, power; no verdicts."""

    pilot: tyro.conf.Suppress[bool] = True
    seeds: OptionalInt = None
    """pilot seeds per cell, as they were run (default: as the study declares)"""


@dataclass(frozen=True, kw_only=True)
class Tabulate(Options):
    """Print the tables: the verdicts, every cell, ours beside the paper's."""


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """Verdicts, tables and figures in one document, below the store."""


@dataclass(frozen=True, kw_only=True)
class Histories(Options):
    """Write every row of the histories, and means over seeds, as Parquet files."""


@dataclass(frozen=True, kw_only=True)
class Publish(Options):
    """Write records, tables and figures into figures/, and renew the boards."""

    to: OptionalPath = None
    """a folder of your own to publish into, with its own board (default: the project's figures/, from within a clone of it)"""


COMMANDS = {"verdicts": Verdicts, "figures": Figures, "tables": Tabulate, "report": Report, "pilot": Pilot,
            "histories": Histories, "publish": Publish}


def main(argv: list[str] | None = None, prog: str = "python -m analysis") -> int:
    """Run one command line; returns the exit status. Errors of the user become one sentence on stderr."""
    try:
        words = sys.argv[1:] if argv is None else argv
        if words[:1] and words[0] in terminal.EXPERIMENTS:
            raise UsageError(f"{words[0]} is a command of `python -m experiments`")
        options = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=prog, description=__doc__, args=words)
        options = _with_scale(flags.with_task(terminal.expanded(options)))
        if _check(options):
            return _foreign(options)
        if isinstance(options, Histories):
            return _export(options)
        incomplete, documents = 0, []
        for tables in _tables(options):
            with contextlib.redirect_stdout(sys.stderr):  # what studies print is no part of the document
                text, document = _answer(options, tables)
            documents.extend(document)
            if not options.json and (len(tables.runs) or not tables.missing_runs):  # else nothing was run
                terminal.show(text)
            if tables.missing_runs or tables.missing_measurements:
                incomplete = 1
                line = terminal.command_line("run", tables.study.name, options, *_of_pilots(options))
                terminal.complain(
                    f"{tables.missing_runs} runs and {tables.missing_measurements} measurements of {tables.study.name} are "
                    f"missing; `{line}` makes them"
                )
        if options.json:
            terminal.show(json.dumps(documents, indent=1, sort_keys=True))
        return incomplete
    except (UsageError, ConfigError) as error:
        return terminal.complain(error, 2)
    except BrokenPipeError:
        raise  # to `terminal.run`
    except (StoreError, DataError, OSError) as error:
        return terminal.complain(error, 1)
    except ImportError as error:
        return terminal.complain(terminal.missing(error), 1)
    except KeyboardInterrupt:
        return 130


def _with_scale(options: Options) -> Options:
    """`options` with the only scale of the study, where none is asked for."""
    if options.scale:
        return options
    if options.study == "all":
        raise UsageError("`all` needs a scale; name it with --scale, such as quick")
    study = find_study(options.study, folder_of_studies(options.studies), options.store)
    return replace(options, scale=scale_of(study, None))


def _of_pilots(options: Options) -> list[str]:
    """The options of `run` for the pilot runs that were asked for."""
    if not getattr(options, "pilot", False):
        return []
    seeds = getattr(options, "seeds", None)
    return ["--pilot", *([] if seeds is None else [f"--seeds={seeds}"])]


def _check(options: Options) -> bool:
    """Whether the store holds tables from elsewhere; raises `UsageError` for options that would be ignored or are impossible."""
    from analysis.foreign import is_foreign

    foreign = not options.published and is_foreign(options.store)
    if options.goal is not None and not foreign:
        raise UsageError(f"--goal is of tables from elsewhere, and {options.store} holds none")
    if options.goal is not None and not 0 < options.goal < math.inf:
        raise UsageError(f"--goal is {options.goal}, but must be a number above 0, such as an error of 0.1")
    if getattr(options, "pilot", False) and options.published:
        raise UsageError("pilot runs are not published; leave out --published, and name their store with --store")
    if options.set and (foreign or options.published or isinstance(options, Publish) or options.study == "all"):
        raise UsageError("--set is for one study in a store of yours; results of other settings are not published")
    if (seeds := getattr(options, "seeds", None)) is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"--seeds is {seeds}, but must be from 1 to {MAX_SEEDS}")
    return foreign


def _foreign(options: Options) -> int:
    """What tables from elsewhere give: figures, effects and a table, below their folder."""
    from analysis import draw, foreign, report
    from analysis import tables as text_tables

    own = getattr(options, "pilot", False) or not isinstance(options, (Verdicts, Figures, Tabulate, Report))
    if options.study != "shallue2019" or own:
        raise UsageError(
            f"{options.store} holds tables from elsewhere: read them with verdicts, figures, tables or report of shallue2019, or "
            "name a store of runs with --store"
        )
    (study,) = _studies(options)
    searches, faults = foreign.read(options.store, options.goal)
    tables, found, listed = (
        foreign.tables(searches, study, options.scale), foreign.verdicts(searches, study, options.scale), foreign.table(searches)
    )
    text, documents, drawn = [listed.title], [], []
    folder = _folder(options, foreign.SOURCE, study.name, options.scale) if isinstance(options, (Figures, Report)) else None
    if folder is not None:
        for figure in tables.study.figures:
            try:
                drawn.append(draw.draw(figure, tables, folder))
            except NoDataError:
                drawn.append(Drawn(figure.name, "no data", reason="no trial has it"))
    match options:
        case Verdicts():
            text, documents = [*text, text_tables.verdict_lines(found)], [v.to_dict() for v in found]
        case Tabulate():
            text.append(text_tables.render(listed, "md"))
            documents = [{"table": listed.name, "columns": listed.columns, "rows": listed.rows}]
        case Figures():
            text, documents = [*text, *map(_drawn_line, drawn)], [vars(d) for d in drawn]
        case Report() if folder is not None:
            path = folder / "report.md"
            write_atomic(path, report.of_elsewhere(listed, found, drawn).encode())
            text += [text_tables.verdict_lines(found), *map(_drawn_line, drawn), f"report: {path}"]
            documents = [{"report": str(path), "verdicts": [v.to_dict() for v in found], "figures": [vars(d) for d in drawn]}]
    terminal.show(json.dumps(documents, indent=1, sort_keys=True) if options.json else "\n".join(text))
    if faults:
        terminal.complain(f"{len(faults)} files are left out, the first because {faults[0]}; unpack the archive anew")
    return int(bool(faults))


def _export(options: Histories) -> int:
    """Histories may be larger than the memory, so that nothing else is read with them."""
    from analysis.history import export
    from analysis.load import stages_in

    if options.published:
        raise UsageError("histories are read from a store; the published ones are figures/<study>/<scale>/history.parquet")
    written, missing, store = [], 0, Store(options.store, create=False)
    for study in _studies(options):
        stages = ()
        with _alone(options):
            stages = stages_in(study, Request(_scale(options, study)), store)
        records = [record for stage in stages for record in stage.records if record is not None]
        written += export(store, records, _folder(options, "store", study.name, _scale(options, study)))
        if absent := sum(stage.at_most for stage in stages) - len(records):
            missing += absent
            line = terminal.command_line("run", study.name, options)
            terminal.complain(f"{absent} runs of {study.name} are missing; `{line}` makes them")
    if options.json:
        terminal.show(json.dumps([{"written": str(path)} for path in written], indent=1))
    else:
        terminal.show("\n".join(f"written: {path}" for path in written))
    return int(missing > 0)


def _tables(options: Options) -> Iterator[Tables]:
    """The records of the study asked for, or of `all` that have the scale."""
    from analysis.load import from_published, from_store

    studies = _studies(options)
    if isinstance(options, Publish):
        for study in studies:  # before any is published
            _destination(options, study)
    for study in studies:
        folder = FIGURES / study.name / options.scale
        if options.published and options.study == "all" and not folder.is_dir():
            terminal.complain(f"left out: {study.name} is not published at scale {options.scale}")
            continue
        with _alone(options):
            if options.published:
                yield from_published(folder, study)
            else:
                request = None
                if isinstance(options, (Figures, Pilot)) and options.pilot:
                    request = Request(_scale(options, study), options.seeds, pilot=True)
                yield from_store(study, _scale(options, study), Store(options.store, create=False), request)


@contextlib.contextmanager
def _alone(options: Options) -> Iterator[None]:
    """A study that breaks when it is planned is left out of `all`; asked for by its name it is an error."""
    try:
        yield
    except (BrokenStudyError, DataError) as error:
        if options.study != "all":
            raise
        terminal.complain(f"left out: {error}")


def _studies(options: Options) -> list[Study]:
    folder = folder_of_studies(options.studies)
    if options.study != "all":
        known = Noted(Store(options.store, create=False))
        return [asked_for(find_study(options.study, folder, options.store), options.scale, options.set, known)[0]]
    found, chosen = search(folder), []
    for broken in found.broken:
        terminal.complain(f"left out: {broken.sentence}")
    for study in found.studies.values():
        if options.scale in {scale.name for scale in study.scales}:
            with _alone(options):
                check_names(study)
                chosen.append(study)
    if not chosen:
        raise UsageError(f"no study has a scale {options.scale!r}; `python -m experiments` lists the studies and scales")
    return chosen


def _answer(options: Options, tables: Tables) -> tuple[str, list[Any]]:
    """Text for a person and a list of JSON objects, for one study."""
    from analysis import pilot, report
    from analysis import tables as text_tables
    from analysis.load import from_store
    from analysis.verdicts import verdicts

    no_claims = f"{tables.study.name} tests no claim at scale {tables.scale}"
    if isinstance(options, Pilot):
        rows = pilot.rows(tables)
        return pilot.text(rows) or no_claims, rows
    found = verdicts(tables)
    match options:
        case Verdicts():
            text, rows = _answers(options, tables, found, _again(options, tables))
            return text, rows
        case Tabulate():
            listed = report.every_table(tables, found)
            text = "\n".join(f"{t.title}\n\n{text_tables.render(t, 'md')}" for t in listed)
            return text, [{"table": t.name, "columns": t.columns, "rows": t.rows} for t in listed]
        case Figures():
            from analysis.draw import draw_all

            drawn = draw_all(tables, _folder(options, tables.source, tables.study.name, tables.scale))
            none = f"{tables.study.name} draws no figure at scale {tables.scale}"
            return "\n".join(_drawn_line(d) for d in drawn) or none, [vars(d) for d in drawn]
        case Report():
            from analysis.draw import draw_all

            folder = _folder(options, tables.source, tables.study.name, tables.scale)
            drawn = draw_all(tables, folder)
            path = folder / "report.md"
            again = _again(options, tables)
            write_atomic(path, report.markdown(tables, found, drawn, again.of_claims).encode())
            words, rows = _answers(options, tables, found, again)
            if not tables.study.claims_at(tables.scale):
                words = text_tables.render(text_tables.cell_table(tables), "md")
            text = "\n".join([*(_drawn_line(d) for d in drawn), f"report: {path}", "", words])
            return text, [{"report": str(path), "verdicts": rows, "figures": [vars(d) for d in drawn]}]
        case Publish():
            if options.published:
                raise UsageError("publish reads a store; leave out --published")
            from analysis import publish

            store, asked = Store(options.store, create=False), Request(options.scale, pilot=True)
            pilots = from_store(tables.study, options.scale, store, asked)
            written = publish.publish(tables, *_destination(options, tables.study), pilots=pilots)
            return "\n".join(f"written: {path}" for path in written), [{"written": [str(path) for path in written]}]
    raise AssertionError(f"no answer to {type(options).__name__}")


def _destination(options: Publish, study: Study) -> tuple[Path, Path | None]:
    """The folder to publish into and the README to renew: the project's own only for its own studies, in a clone of it."""
    if options.to is not None and options.to.resolve() != FIGURES:
        return options.to, None
    if not study.module.startswith("experiments."):
        raise UsageError(f"{study.name} is a study of yours: give a folder of yours to publish it into, with --to")
    if not inside(Path.cwd()):
        raise UsageError(f"figures/ is the project's: publish {study.name} from within a clone of it, or into a folder with --to")
    return FIGURES, README


def _again(options: Options, tables: Tables) -> Replications:
    """What further seeds say, where a store may hold some; a sentence on stderr where they are none."""
    from analysis.replication import Replications, replications

    found = Replications() if options.published else replications(tables, Store(options.store, create=False))
    if found.refused is not None:
        print(f"note: {found.refused}", file=sys.stderr)
    return found


def _answers(options: Options, tables: Tables, found: list[Verdict], again: Replications) -> tuple[str, list[Any]]:
    """The verdicts as text and as JSON objects; those of a store say what further seeds gave, whose records they are of, and how
    they compare with what is published (null: nothing)."""
    from analysis import agree
    from analysis.tables import verdict_lines

    rows, compared = [v.to_dict() for v in found], _compared(options, tables, found)
    if tables.source == "store":
        theirs = {each.yours.claim: each.to_dict() for each in compared.claims}
        for row in rows:
            other = again.of_claims.get(row["claim"])
            row["replication"] = None if other is None else other.to_dict()
            row["published_records"] = len(tables.imported.intersection(row["runs"]))
            row["published"] = theirs.get(row["claim"])
    text = verdict_lines(found, {name: (other.words(), other.verdict) for name, other in again.of_claims.items()})
    if tables.imported:
        text += f"\n{tables.imported_words}"
    text = text or f"{tables.study.name} tests no claim at scale {tables.scale}"
    return "\n\n".join([text, *([agree.text(compared)] if compared.claims else [])]), rows


def _compared(options: Options, tables: Tables, found: list[Verdict]) -> Comparison:
    """The verdicts of a store beside the published ones, of runs that were computed here; empty where there are none."""
    from analysis.agree import Comparison, with_published

    if options.published or not tables.study.module.startswith("experiments."):
        return Comparison()
    own = [verdict for verdict in found if not tables.imported.intersection(verdict.runs)]
    if not own:
        return Comparison()
    try:
        return with_published(tables, own, FIGURES / tables.study.name / tables.scale)
    except (UsageError, ValueError, KeyError) as error:  # a reader's own results do not hang on what is published
        terminal.complain(f"what is published of {tables.study.name} cannot be compared: {error}")
        return Comparison()


def _scale(options: Options, study: Study) -> str:
    """The scale asked for, or the name of its settings where they are others."""
    return study.scales[0].name if study.scales[0].of else options.scale


def _folder(options: Options, source: str, study: str, scale: str) -> Path:
    """Where local figures and tables go: below the store, never into figures/."""
    folder = options.store / "reports" / source / study / scale
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _drawn_line(drawn: Any) -> str:
    where = f": {drawn.files[1]}" if drawn.files else f": {drawn.reason}"
    return f"figure {drawn.name} ({drawn.state}){where}"


if __name__ == "__main__":
    sys.exit(terminal.run(main))
