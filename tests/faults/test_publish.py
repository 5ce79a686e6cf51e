"""Publishing killed at any step, on file systems that exchange two folders and on those that do not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic
from disk import Disk, dies_at
from toy_store import files

from analysis import publish, swap
from analysis.load import Tables, from_store
from analysis.verdicts import verdicts
from experiments.lab.store.files import StoreError, to_json, write_atomic

STUDY = synthetic.study()
README = "<!-- begin:board --><!-- end:board -->"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return from_store(STUDY, "quick", synthetic.write(tmp_path_factory.mktemp("store"), STUDY))


@pytest.fixture(scope="module")
def answers(tables: Tables) -> list[dict[str, Any]]:
    return [verdict.to_dict() for verdict in verdicts(tables)]


@pytest.fixture
def pages(answers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pages of a few small files that say which records they are of: what is tried is the order of the writes."""
    monkeypatch.setattr(publish, "picture", lambda found: {"board.csv": found[0]["decided_by"].encode()})

    def of(records: str) -> None:
        def page(tables: Tables, folder: Path, old: Path) -> list[str]:
            found = [verdict | {"decided_by": records} for verdict in answers]
            contents = {"verdicts.json": to_json(found), "runs.parquet": records.encode(), "README.md": records.encode()}
            for name, content in contents.items():
                write_atomic(folder / name, content)
            if records == "fails":
                raise StoreError("a figure cannot be drawn")
            return list(contents)

        monkeypatch.setattr(publish, "_page", page)

    return of


def killed(work: Callable[[], object], root: Path, call: int) -> bool:
    """Do `work` in a process that dies instead of its `call`th change below `root`; whether it died."""
    if (child := os.fork()) == 0:
        try:
            Disk(root, dies_at(call))
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_page_is_the_old_one_or_the_new_one(
    exchanges: bool, tables: Tables, pages: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of one store beside verdicts of another; a board that no later call makes right."""
    if not exchanges:
        monkeypatch.setattr(swap, "_exchange", lambda *_: False)
    figures, readme = tmp_path / "figures", tmp_path / "README.md"
    page = figures / "toy" / "quick"
    readme.write_text(README)
    states: dict[str, dict[str, bytes]] = {}
    for records in ("new", "old"):
        pages(records)
        publish.write(tables, figures, readme)
        states[records] = files(page)
    pages("new")
    seen, call = set[bool](), 1
    while killed(lambda: publish.write(tables, figures, readme), tmp_path, call):
        swap.clear(figures)
        now = files(page)
        assert now in states.values(), f"a mixture after a kill at call {call}"
        seen.add(now == states["old"])
        call += 1
    assert seen == {True, False} and call > 20
    assert files(page) == states["new"] and (figures / "board.csv").read_bytes() == b"new"


def test_a_failure_leaves_the_old_page(tables: Tables, pages: Callable[[str], None], tmp_path: Path) -> None:
    """A figure that cannot be drawn costs the page that was there, or leaves half of another."""
    figures, readme = tmp_path / "figures", tmp_path / "README.md"
    readme.write_text(README)
    pages("old")
    publish.write(tables, figures, readme)
    before = files(tmp_path)
    pages("fails")
    with pytest.raises(StoreError):
        publish.write(tables, figures, readme)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "file", ["README.md", *(f"{{page}}/{name}" for name in ("notes.txt", "mine/data.csv", "table_mine.csv", "notes.json"))]
)
def test_files_of_the_user_stay(file: str, tables: Tables, pages: Callable[[str], None], tmp_path: Path) -> None:
    """A folder of the user's is taken for an old board, and what lies there is gone."""
    path = tmp_path / file.format(page=f"{tables.study.name}/{tables.scale}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    pages("new")
    with pytest.raises(StoreError, match="another --to"):
        publish.write(tables, tmp_path, None)
    assert files(tmp_path) == {file.format(page=f"{tables.study.name}/{tables.scale}"): b"mine"}


def test_a_board_of_the_user_is_renewed(tables: Tables, pages: Callable[[str], None], tmp_path: Path) -> None:
    """The second publication is refused because of the first."""
    pages("old")
    publish.write(tables, tmp_path, None)
    pages("new")
    publish.write(tables, tmp_path, None)


def test_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    """A page taken from its place by a process that died, lost; folders that pile up; one that is still at work, disturbed."""
    left = tmp_path / f"{swap.UNDER_WAY}abc"
    (left / swap.ASIDE / "study" / "quick").mkdir(parents=True)
    (left / swap.ASIDE / "study" / "quick" / "README.md").write_text("old")
    swap.clear(tmp_path)
    assert (tmp_path / "study" / "quick" / "README.md").read_text() == "old" and left.exists()
    os.utime(left, (0, 0))
    swap.clear(tmp_path)
    assert not left.exists() and (tmp_path / "study" / "quick" / "README.md").exists()
