"""Some minutes of one GPU, used well: is it right, how fast is it, and scale `gpu` of keskar2017. See docs/gpu.md.

    python tests/gpu/visit.py --minutes 7 --out DIR --data DIR

Runs uninstalled. Each part has its time, writes as it goes and may be killed at any instant. Without CUDA, or with
--rehearsal, everything is done in small and every output says so.

Exit status: 0 all parts finished and right, 1 something failed or was not finished, 2 the visit cannot begin.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from gpu import parts  # noqa: E402

NEEDED = ("torch", "numpy", "scipy", "safetensors")
BOXES = {"machine": 40.0, "correctness": 60.0, "speed": 90.0}
"""seconds of a visit of 7 minutes; the study has what is left"""
MINUTES = 7.0
LEAST = 25.0
"""seconds that a first import of torch may take: the box of `machine` is never shorter"""
GRACE = 15.0
"""seconds between asking a part to stop and ending it"""
WORTH = 3.0
"""with fewer seconds left a part is not begun"""
PARTS = ("machine", "correctness", "speed", "study")


class Stopped(Exception):
    """The visit was asked to stop."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--data", type=Path, help="folder with cifar10-jpeg, unpacked (default: as for every other command)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearsal", action="store_true", help="everything in small; so without CUDA in any case")
    parser.add_argument("--store", type=Path, help="folder of the study's store (default: OUT/store)")
    parser.add_argument("--records", type=Path, help="runs.tar of an earlier visit, which this one goes on from")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if why := refusal(chosen):
        print(f"error: {why}", file=sys.stderr)
        return 2
    store = chosen.store or chosen.out / "store"
    if chosen.part:
        rehearsal = chosen.rehearsal or not chosen.device.startswith("cuda")
        job = parts.Job(chosen.out, store, chosen.device, rehearsal, chosen.data, chosen.records)
        return parts.perform(chosen.part, job)
    chosen.out.mkdir(parents=True, exist_ok=True)
    chosen.out, chosen.store = chosen.out.resolve(), store.resolve()
    return Visit(chosen).run()


def refusal(chosen: argparse.Namespace) -> str | None:
    """Why the visit cannot begin, in a sentence."""
    if lacking := parts.missing(NEEDED):
        return f"a visit needs {', '.join(NEEDED)}, but {lacking[0]} is not installed here; nothing was run"
    if not 0.5 <= chosen.minutes <= 1440:
        return f"--minutes is {chosen.minutes:g}, but must be from 0.5 to 1440"
    if chosen.data is not None and not chosen.data.is_dir():
        return f"the data folder {chosen.data} does not exist; give one with --data, or leave it out"
    if chosen.records is not None and not chosen.records.is_file():
        return f"there is no archive {chosen.records}; give the runs.tar of an earlier visit with --records"
    return None


class Visit:
    """The parts in order, each in a process and process group of its own."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen, self.out, self.began = chosen, chosen.out, time.monotonic()
        self.rehearsal, self.device = chosen.rehearsal or chosen.device == "cpu", chosen.device
        self.summary: dict[str, Any] = {
            "rehearsal": None, "minutes": chosen.minutes, "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "source_sha256": source_sha256(), "machine": {"python": platform.python_version()}, "parts": {},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        for part in PARTS:
            for old in (self.out / f"{part}.json", self.out / "visit.log"):
                old.unlink(missing_ok=True)
        self.write()
        try:
            self.part("machine", max(LEAST, self.box("machine")))
            if self.read("machine"):
                self.settle(self.read("machine"))
                self.part("correctness", self.box("correctness"))
                self.part("speed", self.box("speed"))
                if (why := self.data_missing()) is not None:
                    self.tell("study", status="skipped", sentence=why)
                else:
                    self.part("study", self.left() - GRACE)
        except Stopped:
            self.summary["stopped"] = "by a signal"
            for facts in self.summary["parts"].values():
                if facts["status"] == "running":
                    facts |= {"status": "stopped", "sentence": "the visit was asked to stop"}
        finally:
            self.end()
            self.summary["seconds"] = round(time.monotonic() - self.began, 1)
            self.write()
        print(table(self.summary, {part: self.read(part) for part in PARTS}), flush=True)
        finished = [self.summary["parts"].get(part, {}).get("status") == "ok" for part in PARTS]
        return 0 if all(finished) else 1

    def settle(self, machine: dict[str, Any]) -> None:
        """What is here decides whether this is a rehearsal."""
        if not machine["cuda available"] and self.device.startswith("cuda"):
            print("no CUDA device is here: a rehearsal on the CPU, in small; its numbers say nothing of a GPU", flush=True)
            self.rehearsal, self.device = True, "cpu"
        self.summary["machine"] = {name: value for name, value in machine.items() if name not in ("part", "rehearsal")}
        if self.rehearsal:
            where = "GPU" if self.device.startswith("cuda") else "CPU"
            self.summary["rehearsal"] = f"rehearsal on {where}: these numbers are no results"
        self.write()

    def data_missing(self) -> str | None:
        if self.rehearsal:
            return None
        from experiments.lab.datasets import DataError, available

        try:
            there = available("cifar10-jpeg", self.chosen.data)
        except DataError as error:
            return str(error)
        return None if there else "cifar10-jpeg is in none of the places that --data names; see docs/gpu.md"

    def left(self) -> float:
        return self.began + 60 * self.chosen.minutes - time.monotonic()

    def box(self, part: str) -> float:
        """Seconds of a part; a CPU is slow, and nothing comes after a rehearsal that is short of time."""
        longer = 2.0 if self.device == "cpu" else 1.0
        return min(longer * BOXES[part] * min(1.0, self.chosen.minutes / MINUTES), self.left() - GRACE)

    def part(self, part: str, seconds: float) -> None:
        """Run a part for so many seconds at most."""
        if seconds < WORTH:
            self.tell(part, status="skipped", sentence="no time was left")
            return
        start = time.monotonic()
        self.tell(part, status="running", limit_s=round(seconds, 1), sentence="killed, if this is still here")
        with open(self.out / "visit.log", "ab") as log:
            log.write(f"--- {part}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                self.command(part), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
            status = self.wait(seconds)
        self.end()
        seconds = round(time.monotonic() - start, 1)
        self.tell(part, status=status, seconds=seconds, sentence=sentence(part, status, self.read(part)))

    def command(self, part: str) -> list[str]:
        words = [sys.executable, str(HERE / "visit.py"), "--part", part, "--out", str(self.out), "--device", self.device,
                 "--store", str(self.chosen.store)]
        for name in ("data", "records"):
            if getattr(self.chosen, name) is not None:
                words += [f"--{name}", str(getattr(self.chosen, name).resolve())]
        return words + ["--rehearsal"] * self.rehearsal

    def wait(self, seconds: float) -> str:
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return {0: "ok", 143: "timed out"}.get(self.process.wait(seconds), "failed")
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        return "timed out"

    def end(self) -> None:
        """Nothing of a part outlives it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE / 3)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def tell(self, part: str, **facts: Any) -> None:
        self.summary["parts"][part] = self.summary["parts"].get(part, {}) | facts
        self.write()

    def write(self) -> None:
        from experiments.lab.store.files import to_json, write_atomic

        write_atomic(self.out / "summary.json", to_json(self.summary))

    def read(self, part: str) -> dict[str, Any]:
        return read(self.out / f"{part}.json")

    def _stop(self, number: int, frame: object) -> None:
        raise Stopped


def read(path: Path) -> dict[str, Any]:
    """What a part wrote, or nothing."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def source_sha256() -> str:
    """Of everything that computes, for a copy that is no checkout and has no commit."""
    sha = hashlib.sha256()
    for path in sorted(path for name in ("experiments", "sharpness") for path in (ROOT / name).rglob("*.py")):
        sha.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return sha.hexdigest()


def sentence(part: str, status: str, found: dict[str, Any]) -> str:
    """What a part found, in a line."""
    if part == "machine" and found:
        return f"{found['hardware']}, torch {found['torch']}"
    if part == "correctness" and found:
        counts = {s: sum(check["status"] == s for check in found["checks"]) for s in ("passed", "failed", "skipped")}
        told = [f"{count} {name}" for name, count in counts.items() if count]
        return ", ".join(told + ([f"{len(found['not run'])} not run"] if found["not run"] else []))
    if part == "speed" and found:
        done = [name for name in ("small batches", "large batch", "determinism") if "error" not in found.get(name, {"error": 0})]
        return f"{len(done)} of 3 tables"
    if part == "study" and found:
        cells = [f"B {size}: {cell['finished']} of {cell['declared']} runs" for size, cell in found["batch sizes"].items()]
        return "; ".join([*cells, found["failures"][0]] if found["failures"] else cells)
    return "nothing was written; see visit.log" if status != "ok" else ""


def table(summary: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    """The whole visit as a person reads it."""
    lines = [summary["rehearsal"].upper()] if summary.get("rehearsal") else []
    facts = [f"{name} {value}" for name, value in summary["machine"].items() if name != "hardware"]
    lines += [f"{summary['machine'].get('hardware', 'machine unknown')} ({', '.join(facts)})", ""]
    lines.append(f"{'part':12} {'status':10} {'seconds':>8} {'limit':>7}  what")
    for part in PARTS:
        facts = summary["parts"].get(part, {"status": "not run"})
        times = [f"{facts[name]:.0f}" if name in facts else "-" for name in ("seconds", "limit_s")]
        lines.append(f"{part:12} {facts['status']:10} {times[0]:>8} {times[1]:>7}  {facts.get('sentence', '')}")
    checks = [f"  {c['status']:8} {c['name']}: {c['sentence']}" for c in found["correctness"].get("checks", [])]
    lines += _block("Checks", checks) + _block("Speed", _speed(found["speed"])) + _block("Study", _study(found["study"]))
    return "\n".join(lines)


def _block(title: str, lines: list[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def _speed(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, rows in found.get("small batches", {}).items():
        if isinstance(rows, dict):
            kinds = [f"{what} {value:.3g}" + ("x" if "/" in what else " s") for what, value in rows.items()]
            lines.append(f"  an update of ResNet-20, {name}: {', '.join(kinds)}")
    if "rate" in (large := found.get("large batch", {})):
        lines.append(f"  fast network, B {large['batch_size']}: {100 * large['share of bf16 peak']:.0f}% of "
                     f"{large['peak'] / 1e12:.3g} TFLOP/s")
    for name, row in found.get("determinism", {}).items():
        if isinstance(row, dict):
            lines.append(f"  repeatable kernels, {name}: {100 * row['determinism tax']:+.1f}% of the time")
    return lines + [f"  {name}: {part['error']}" for name, part in found.items() if isinstance(part, dict) and "error" in part]


def _study(found: dict[str, Any]) -> list[str]:
    lines = []
    for size, cell in found.get("batch sizes", {}).items():
        scores = [run["test_accuracy"] for run in cell["runs"] if run["test_accuracy"] is not None]
        mean = f", mean test accuracy {sum(scores) / len(scores):.2f}" if scores else ""
        lines.append(f"  B {size}: {cell['finished']} of {cell['declared']} seeds finished, {cell['measured']} measured{mean}")
    for verdict in found.get("verdicts") or []:
        lines.append(f"  {(verdict['verdict'] or 'no verdict').upper():13} {verdict['sentence']}: {verdict['decided_by']}")
    for name in ("why no verdicts", "exported", "published"):
        if found.get(name):
            lines.append(f"  {name}: {found[name]}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
