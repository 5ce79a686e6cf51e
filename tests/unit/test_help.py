"""`--help` of the three programs, at 80 columns."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from analysis.__main__ import COMMANDS as ANALYSES
from analysis.__main__ import main as analysis
from experiments.__main__ import COMMANDS, main
from experiments.lab.declare.config import RunConfig
from experiments.lab.sweep.flags import GROUPS, USUAL
from sharpness.__main__ import main as sharpness

PAGES = [(program, []) for program in (main, analysis, sharpness)]
PAGES += [(main, [name]) for name in COMMANDS] + [(analysis, [name]) for name in ANALYSES]


def test_every_field_of_a_run_is_in_one_group() -> None:
    """A field that `train` cannot set, or that is listed twice."""
    assert Counter([*USUAL, *(name for names in GROUPS.values() for name in names)]) == Counter(
        field.name for field in dataclasses.fields(RunConfig)
    )


def test_each_default_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`(default: the whole batch) (default: None)`, and lines that a terminal breaks."""
    monkeypatch.setenv("COLUMNS", "80")
    for program, words in PAGES:
        with pytest.raises(SystemExit):
            program([*words, "--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines()[1:])) <= 80, (words, text)
        said = re.sub(r"[│|\s]+", " ", text)
        assert "--help" in said and "{None}" not in said and not re.search(r"\(default[^()]*\) \(default", said), words


def test_the_usual_flags_come_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever wants to train something reads 60 flags."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    found = re.findall(r"^(?:│ |  )--([a-z0-9-]+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert found[:10] == ["data", *(name.replace("_", "-") for name in USUAL[1:]), "device", "store"]
