"""The tables of the training benchmark."""

from __future__ import annotations

from typing import Any


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def _of_bare(part: dict[str, Any]) -> list[str]:
    nets = list(dict.fromkeys(row["net"] for row in part["rows"]))
    sizes = sorted({row["batch_size"] for row in part["rows"]})
    cells = {(row["net"], row["batch_size"]): row for row in part["rows"]}

    def line(title: str, net: str, value: Any) -> list[str]:
        return [title, *(value(cells[net, size]) if (net, size) in cells else "" for size in sizes)]

    rows = [line(f"{net}: bare / ours", net, lambda row: f"{row['cpu']['ratio']:.2f}") for net in nets]
    rows += [line(f"{net}: ours, µs", net, lambda row: f"{row['cpu']['seconds'][0] * 1e6:,.0f}") for net in nets]
    rows += [line(f"{net}: share of peak", net, lambda row: f"{100 * row['share of peak']:.0f}%") for net in nets]
    missed = [row for row in part["rows"] if row["cpu"]["ratio"] < part["goal"]]
    lowest = min(row["cpu"]["ratio"] for row in part["rows"])
    peak = max(part["peak"].values()) / 1e9
    return [
        *_table(["time per update at B =", *(f"{size:,}" for size in sizes)], rows),
        "",
        f"*Bare: the fastest eager loop in plain PyTorch that we could write, without logs, checkpoints or evaluation. Lowest "
        f"ratio {lowest:.2f}; goal {part['goal']:g}, missed by {len(missed)} of {len(part['rows'])}. Median of "
        f"{part['rows'][0]['rounds']} rounds (ours, bare, bare, ours), processor seconds, one thread. Peak: the best float32 "
        f"product of square matrices, {peak:.0f} GFLOP/s; convolutions have kernels of their own and may pass it.*",
    ]


def _of_harnesses(part: dict[str, Any]) -> list[str]:
    rows = [[f"{name} ({row['version']})", *(f"{seconds * 1e6:,.0f}" for seconds in row["cpu"]["seconds"][::-1]),
             f"{row['cpu']['ratio']:.2f}"]
            for name, row in part["rows"].items()]
    return [
        *_table([f"{part['net']}, B {part['batch_size']}", "µs per update", "ours, µs", "ratio"], rows),
        "",
        f"*The same network, data and number of updates in one process; no bars, logs, checkpoints or workers. Adam is fused as "
        f"ours is; plain: torch.optim.Adam(...) as their manuals write it. Processor seconds; goal {part['goal']:g}.*",
    ]


def _of_input(part: dict[str, Any]) -> list[str]:
    best = min(("0 workers", "2 workers"), key=lambda workers: part[workers]["input"]["wall"]["ratio"])
    ours, theirs = (part["batch_size"] / seconds for seconds in part[best]["input"]["wall"]["seconds"])
    return [f"*Crops and flips of 32 x 32 x 3 images, batches of {part['batch_size']}: {ours:,.0f} images per second against "
            f"{theirs:,.0f} of a DataLoader with torchvision's steps on PIL images ({best}: of 0 and 2 the smaller ratio), "
            f"**{part['input']:.1f}x** (goal {part['goal']:g}x); a whole update of small-conv with that input: "
            f"{part['update']:.1f}x. Wall seconds.*"]


def markdown(results: dict[str, Any]) -> str:
    """The parts that were measured, each with a note of how, and the machine of the first."""
    makers = {"bare": _of_bare, "harnesses": _of_harnesses, "input": _of_input}
    lines: list[str] = []
    for name, make in makers.items():
        if name in results:
            lines += [*make(results[name]), ""]
    where = next(iter(results.values()))["machine"]
    return "\n".join([*lines, f"*{where['cpu']}, torch {where['torch']}; `make benchmark-training` measures it anew.*"])
