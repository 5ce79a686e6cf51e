"""One thread for every test, as workers compute, so that bits do not depend on the number of cores; and which tests are slow.

A test function is slow if its cases take more than `SHARE` of the time of all tests, together with the longest preparation in
its file: whichever test runs first prepares what others share. `tests/slow.txt` names them, `make test` says what it lacks, and
`make slow` writes it anew; a test that it does not name belongs to `make test-fast`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

SHARE = 1 / 2000
SLOW = Path(__file__).with_name("slow.txt")

torch.set_num_threads(1)
os.fsync = lambda fd: None  # only a power failure loses what is written, and no test waits for the disk


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-slow", action="store_true", help="write tests/slow.txt from the times of this run of all tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = set(SLOW.read_text("utf-8").split())
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    times: Counter[str] = Counter()
    prepared: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            times[report.nodeid.partition("[")[0]] += report.duration
            if report.when == "setup":
                prepared[report.fspath] = max(prepared[report.fspath], report.duration)
    share = SHARE * times.total()
    slow = {name for name, seconds in times.items() if seconds > share or prepared[name.partition("::")[0]] > share}
    if config.option.write_slow:
        SLOW.write_text("".join(f"{name}\n" for name in sorted(slow)), "utf-8")
    elif config.args == config.getini("testpaths") and not config.option.markexpr.count("slow"):
        for name in sorted(slow - set(SLOW.read_text("utf-8").split())):
            terminalreporter.write_line(f"slow, and not in tests/slow.txt: {name}")
