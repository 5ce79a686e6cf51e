"""The tables of docs/benchmarks.md, from the published numbers.

    python tests/benchmarks/table.py        rewrites its blocks
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import table_scale
import table_training

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
RESULTS = Path(__file__).resolve().parent / "curvature.json"
PEERS = ("PyHessian", "curvlinops + eigsh", "curvlinops + eigsh, ncv tuned", "hessian-eigenthings")


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line] or [platform.processor()]
    return {"cpu": names[0], "torch": torch.__version__, "python": platform.python_version()}


def markdown(results: dict[str, Any]) -> str:
    """Seconds of each peer over ours, at the loosest setting that finds every value to 1e-3; below it products and memory."""
    nets = results["nets"]
    columns = [(name, k) for k in (1, 5) for name in nets]
    titles = [f"{name}, top {k}" for name, k in columns] + ["mean, top 1", "mean, top 5"]
    lines = ["| " + " | ".join(["time of the peer / ours", *titles]) + " |", "| --- |" + " --- |" * len(titles)]
    for peer in PEERS:
        tops = [nets[name][f"top{k}"] for name, k in columns]
        cells = [f"{top[peer]['seconds'] / top['sharpness']['seconds']:.1f}" for top in tops]
        cells += [f"**{results['geometric means'][f'{peer}, top {k}']:.2f}**" for k in (1, 5)]
        lines.append("| " + " | ".join([peer, *cells]) + " |")
    worst = max(net[f"top{k}"]["sharpness, tol 1e-3"]["error"] for net in nets.values() for k in (1, 5))
    products = ", ".join(f"{net['products']['product / gradient']:.1f} ({name})" for name, net in nets.items())
    peaks = ", ".join(f"""{net['products']["chunked peak bytes / gradient's"]:.1f} ({name})""" for name, net in nets.items())
    where = results["machine"]
    lines += [
        "",
        "*Geometric means in bold; set-up included, one process, one thread, medians, 1,000 images. At `tol=1e-3` the worst "
        f"relative error of ours was {worst:.0e}. One Hessian product costs {products} gradients after set-up; with "
        f"`memory=0` its peak is {peaks} times a gradient's. {where['cpu']}, torch {where['torch']}; `make benchmark` "
        "measures it anew.*",
    ]
    return "\n".join(lines)


def with_block(page: str, block: str, name: str) -> str:
    """`page` with what stands between the two marks replaced."""
    begin, end = f"<!-- begin:benchmark-{name} -->", f"<!-- end:benchmark-{name} -->"
    head, rest = page.split(begin)
    return f"{head}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"


MAKERS = {"curvature": markdown, "training": table_training.markdown, "scale": table_scale.markdown}
"""name of the block and of the file of its numbers, and what draws it"""


def renewed(page: str) -> str:
    """`page` with every block whose numbers are published drawn from them."""
    for name, make in MAKERS.items():
        if (results := RESULTS.with_name(f"{name}.json")).exists():
            page = with_block(page, make(json.loads(results.read_text())), name)
    return page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
