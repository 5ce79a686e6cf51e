"""Publishing killed at any step, on file systems that exchange two folders and on those that do not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic
from disk import Disk, dies_at

from analysis import publish, swap
from analysis.draw import Drawn
from analysis.load import Tables, from_store
from experiments.keskar2017 import STUDY
from toy_store import files

README = "<!-- begin:board --><!-- end:board --><!-- begin:reproduce --><!-- end:reproduce -->"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tables, Tables]:
    """Two sets of records of one study."""
    roots = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    first, second = (synthetic.write(root, STUDY, synthetic.Truth(accuracy_sd=sd)) for root, sd in zip(roots, (0.2, 0.25), strict=True))
    return from_store(STUDY, "quick", first), from_store(STUDY, "quick", second)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without drawing, and with verdicts that are counted once: what is tried is the order of the writes."""
    monkeypatch.setattr(publish, "draw_all", lambda tables, folder: [Drawn("effects", "drawn", ("a", "b"))])
    monkeypatch.setattr(publish, "picture", lambda found: {"board.csv": b"\n".join(v["decided_by"].encode() for v in found)})
    monkeypatch.setattr("analysis.verdicts.crossed_bootstrap", lambda *_: (0.0, 1.0))


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


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_page_is_the_old_one_or_the_new_one(
    exchanges: bool, both: tuple[Tables, Tables], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of one store beside verdicts of another; a board that no later call makes right."""
    if not exchanges:
        monkeypatch.setattr(swap, "_exchange", lambda *_: False)
    figures, readme = tmp_path / "figures", tmp_path / "README.md"
    readme.write_text(README)
    page = figures / "keskar2017" / "quick"

    def state(tables: Tables) -> tuple[dict[str, bytes], dict[str, bytes]]:
        publish.write(tables, figures, readme)
        whole = files(tmp_path)
        assert not [name for name in whole if swap.UNDER_WAY in name]
        return files(page), whole

    (new, all_new), (old, _) = state(both[1]), state(both[0])
    assert old != new and old.keys() == new.keys()
    seen, call, step = set[bool](), 1, 7
    while killed(lambda: publish.write(both[1], figures, readme), tmp_path, call):
        swap.clear(figures)
        found = files(page)
        assert found in (old, new), f"a mixture after a kill at call {call}"
        seen.add(found == new)
        call += step
    assert seen == {True, False} and files(page) == new
    assert {name: content for name, content in files(tmp_path).items() if not name.endswith(".tmp") and swap.UNDER_WAY not in name} == all_new


def test_a_failure_leaves_the_old_page(both: tuple[Tables, Tables], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure that cannot be drawn costs the page that was there, or leaves half of another."""
    readme = tmp_path / "README.md"
    readme.write_text(README)
    monkeypatch.setattr(publish, "draw_all", lambda tables, folder: [])
    publish.write(both[0], tmp_path / "figures", readme)
    before = files(tmp_path)
    monkeypatch.setattr(publish, "draw_all", lambda tables, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish.write(both[1], tmp_path / "figures", readme)
    assert files(tmp_path) == before


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
