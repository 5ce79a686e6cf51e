"""A study as a user writes it, in a folder of their own: seconds to train, sound until a test replaces a word of it."""

from __future__ import annotations

from pathlib import Path

SOUND = '''"""A study of a user's."""

from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind, Power
from experiments.lab.declare.config import Budget, RunConfig
from experiments.lab.declare.study import Figure, Pair, Scale, Stage, Study, measure

BASE = RunConfig(n_train=64, width=4, depth=1, batch_size=16, lr=0.1, budget=Budget.STEPS, steps=2)


def runs(request, records):
    return [BASE.replace(batch_size=size, seed=seed) for seed in request.seed_range(2) for size in (16, 32)]


def measures(config):
    return (measure("lambda_max", examples=8),)


def pairs(runs):
    return [Pair(runs[0], runs[1], measure("slice", examples=8, points=4))]


LARGE = Group("B 32", 1.0, (("batch_size", 32),))
SMALL = Group("B 16", -1.0, (("batch_size", 16),))
CLAIM = Claim(
    "higher", "B 32 ends higher", Kind.DIRECTIONAL, Contrast("lambda_max", (LARGE, SMALL), 1, "nats"), 0.1,
    gates=(Gate("status", 0.1),),
)
STUDY = Study(
    name="mine",
    title="a study",
    citation="nobody",
    scales=(Scale("quick", "tiny", "seconds"),),
    stages=(Stage("train", runs, measures=measures, pairs=pairs),),
    claims=(CLAIM,),
    figures=(Figure("values", "values_vs_batch", (("values", ("test_accuracy",)),)),),
    deviations=("A made-up study.",),
    module=__name__,
)
'''


def written(folder: Path, *changes: tuple[str, str], file: str = "mine.py") -> Path:
    """The study in a file of `folder`, after `changes` from an old word to a new one."""
    text = SOUND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text)
    return folder / file
