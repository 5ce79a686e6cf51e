"""What is published is what the commands give."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def json_of(*words: str) -> list[dict]:
    done = subprocess.run([sys.executable, "-m", *words, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PUBLISHED = sorted(path.parents[1].name for path in (ROOT / "figures").glob("*/quick/verdicts.json"))


def judged(ours: list[dict], published: list[dict]) -> list[str]:
    """Sentences about verdicts that flipped though their effects agree; fails where effects differ (docs/verdicts.md)."""
    assert [v["claim_hash"] for v in ours] == [v["claim_hash"] for v in published]
    assert [v["runs"] for v in ours] == [v["runs"] for v in published]
    answers = {v["claim"]: v["published"] for v in ours}
    assert {answer["answer"] for answer in answers.values()} <= {"same", "agrees"}, answers
    return [f"{v['claim']}: published {v['published']['verdict']}, here {v['verdict']} ({v['published']['why']})"
            for v in ours if v["published"]["flips"]]


@pytest.mark.verify
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PUBLISHED)
def test_quick_study_reproduces_the_published_verdicts(name: str, tmp_path: Path) -> None:
    """The published table would not be what a reader gets: every run from an empty store, then claim by claim."""
    study = (name, "--scale", "quick")
    json_of("experiments", "run", *study, "--store", str(tmp_path))
    ours = json_of("analysis", "verdicts", *study, "--store", str(tmp_path))
    for flip in judged(ours, json_of("analysis", "verdicts", *study, "--published")):
        warnings.warn(f"{name}, verdict flipped within what the intervals allow: {flip}", stacklevel=1)


def claim(answer: str, verdict: str = "reproduced") -> dict:
    flips = answer == "agrees" and verdict != "reproduced"
    published = {"verdict": "reproduced", "answer": answer, "flips": flips, "why": "because"}
    return {"claim": "one", "claim_hash": "c0ffee", "runs": ["a"], "verdict": verdict, "published": published}


def test_verify_reports_flips_and_fails_on_differences() -> None:
    """Another processor would fail on a verdict that the intervals allow, or pass on an effect that is another."""
    assert judged([claim("same")], [claim("same")]) == judged([claim("agrees")], [claim("same")]) == []
    (flip,) = judged([claim("agrees", "inconclusive")], [claim("same")])
    assert flip == "one: published reproduced, here inconclusive (because)"
    for ours in (claim("differs"), claim("differs", "inconclusive"), claim("same") | {"runs": ["b"]},
                 claim("same") | {"claim_hash": "d"}):
        with pytest.raises(AssertionError):
            judged([ours], [claim("same")])


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_readme_commands_after_reproduce(tmp_path: Path) -> None:
    """The README's commands in its order, in a new clone and shell: each must work after the one before."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    blocks = re.findall(r"```bash\n(.*?)```", (clone / "README.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "activate" in block]
    lab = re.compile(r"^jupyter lab (\S+).*$", flags=re.MULTILINE)
    assert lab.search(block)
    # the server runs until it is stopped: started without a browser, it is to be still there after 20 seconds
    block = lab.sub(r"timeout 20 jupyter lab \1 --no-browser --allow-root || test $? = 124\njupyter execute \1", block)
    script = f"set -ex\nmake reproduce PYTHON={sys.executable}\n{block}"
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n  published ") == 2 and "trace" in done.stdout
