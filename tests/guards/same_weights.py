"""Do two commits train the same weights, bit by bit? Both train the runs of `make reproduce` here, one after the other.

    python tests/guards/same_weights.py OLD NEW                                 92 runs, twice 3 minutes on two cores
    python tests/guards/same_weights.py OLD NEW --study dinh2017 --seeds 1      2 runs, a quick trial

One line per run that differs and one in sum. Exit status: 0 the same, 1 not the same, 2 nothing to compare. Only one machine's
weights can be compared: another kind of processor rounds otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit, tag or branch")
    parser.add_argument("new", help="another; commit first what you want to have compared")
    parser.add_argument("--study", default="keskar2017")
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--seeds", type=int, help="seeds per cell (default: as the study declares)")
    options = parser.parse_args(argv)
    request = [options.study, "--scale", options.scale]
    request += ["--seeds", str(options.seeds)] if options.seeds else []
    try:
        with tempfile.TemporaryDirectory() as folder:
            old, new = (trained(commit, Path(folder) / name, request) for name, commit in
                        (("old", options.old), ("new", options.new)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = differences(old, new)
    print("\n".join([*lines, f"{options.old} and {options.new}: {len(old | new) - len(lines)} of {len(old | new)} runs have "
                             "the same weights"]))
    return int(bool(lines))


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """One line per run that only one commit has, or whose weights differ."""
    lines = []
    for run_id in sorted(old | new):
        if run_id not in old or run_id not in new:
            lines.append(f"{run_id}: only the {'old' if run_id in old else 'new'} commit plans it")
        elif old[run_id] != new[run_id]:
            lines.append(f"{run_id}: {old[run_id][:16]} is now {new[run_id][:16]}")
    return lines


def trained(commit: str, folder: Path, request: list[str]) -> dict[str, str]:
    """run_id -> digest of the weights that the code of `commit` ends with; raises `ValueError` where it does not get there."""
    sha = output("git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", what=f"there is no commit {commit!r}")
    with worktree(sha, folder / "tree") as tree:
        environment = os.environ | {"PYTHONPATH": str(tree)}
        command = [sys.executable, "-m", "experiments", "run", *request, "--store", str(folder / "store")]
        if subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL).returncode:
            raise ValueError(f"commit {commit} did not finish `{' '.join(command[1:])}`; see above")
    found = {}
    for path in sorted((folder / "store" / "runs").glob("*/final.safetensors")):
        made_by = json.loads((path.parent / "summary.json").read_text())["commit"]
        if made_by != sha:  # workers would have imported another tree
            raise ValueError(f"run {path.parent.name} was made by commit {made_by}, not by {sha}")
        found[path.parent.name] = digest(path)
    if not found:
        raise ValueError(f"commit {commit} trained no run for `{' '.join(request)}`; ask for others")
    return found


def digest(path: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors in name order, whatever else the file says."""
    sha = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        sha.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return sha.hexdigest()


@contextlib.contextmanager
def worktree(sha: str, tree: Path) -> Iterator[Path]:
    """A checkout of its own, gone afterwards."""
    output("git", "worktree", "add", "--detach", str(tree), sha, what=f"{sha} cannot be checked out")
    try:
        yield tree
    finally:
        output("git", "worktree", "remove", "--force", str(tree), what=f"{tree} is left over")


def output(*command: str, what: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{what} ({' '.join(done.stderr.split())})" if done.stderr else what)
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
