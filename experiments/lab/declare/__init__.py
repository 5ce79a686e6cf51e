"""What a study is written with: configurations, claims, stages, tuning, and the checks of what it declares. Needs no torch."""
# ruff: noqa: F401 (studies import from here)

from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.contrasts import (
    GATES,
    at_scale,
    difference,
    directional,
    equivalent,
    figure,
    group,
    log_ratio,
    non_inferior,
    of_paper,
    paper_rows,
    weighted,
)
from experiments.lab.declare.enums import Augment, Budget, Model, Norm, Optimizer, Precision, Scaling, Schedule, TrainDraw
from experiments.lab.declare.settings import Settings
from experiments.lab.declare.study import (
    Comparison,
    Figure,
    Measure,
    Pair,
    PaperRow,
    Record,
    Request,
    Scale,
    Stage,
    Study,
    measure,
)
