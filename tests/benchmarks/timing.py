"""How the benchmarks of training take time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from engine import Block
from table import machine

SETTINGS = ("GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY")


def here() -> dict[str, Any]:
    """Machine, versions, torch's build, threads and what the environment says about memory and threads."""
    built = [line.strip(" -") for line in torch.__config__.show().splitlines() if "oneDNN" in line or "CPU capab" in line]
    told = {name: value for name, value in os.environ.items() if name in SETTINGS or name.startswith("MALLOC_")}
    facts = {"build": built, "threads": torch.get_num_threads(), "malloc": "keeps freed memory", "environment": told}
    return machine() | facts | {"load": round(os.getloadavg()[0], 2)}


def compared(ours: list[Block], others: list[Block]) -> dict[str, Any]:
    """Seconds an update, [ours, other], medians over blocks; the ratio other / ours of each round and their median.

    A round is two blocks of each in the order ours, other, other, ours.
    """
    found: dict[str, Any] = {"rounds": len(ours) // 2, "updates": [ours[0].updates, others[0].updates]}
    for clock in ("cpu", "wall"):
        times = [[getattr(block, clock) / block.updates for block in blocks] for blocks in (ours, others)]
        pairs = [[sum(each[2 * i : 2 * i + 2]) for each in times] for i in range(len(ours) // 2)]
        ratios = [other / own for own, other in pairs]
        found[clock] = {"seconds": [median(each) for each in times], "ratio": median(ratios), "ratios": ratios}
    return found


def alternated(first: Callable[[], Block], second: Callable[[], Block], rounds: int) -> dict[str, Any]:
    a: list[Block] = []
    b: list[Block] = []
    for _ in range(rounds):
        for blocks, work in ((a, first), (b, second), (b, second), (a, first)):
            blocks.append(work())
    return compared(a, b)


def matmul_peak(sizes: tuple[int, ...], seconds: float) -> dict[int, float]:
    """Float32 operations a processor second of square matrix products, the best of several of each size."""
    found: dict[int, float] = {}
    for size in sizes:
        left, right = torch.rand(size, size), torch.rand(size, size)
        out, best, end = torch.empty(size, size), 0.0, time.perf_counter() + seconds
        calls = max(1, 2 * 10**8 // size**3)
        while time.perf_counter() < end:
            start = time.process_time()
            for _ in range(calls):
                torch.mm(left, right, out=out)
            best = max(best, 2 * size**3 * calls / max(time.process_time() - start, 1e-9))
        found[size] = best
    return found
