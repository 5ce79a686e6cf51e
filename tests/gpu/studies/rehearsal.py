"""keskar2017's scale `gpu` in so small that a CPU finishes it in a minute: tries what a visit does, and says nothing else.

Known only to a rehearsal, which adds this folder to the places where studies are looked for.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import keskar2017
from experiments.keskar2017 import MATCHED, Arm, claims_of, groups_of, measures, rule_of
from experiments.lab.declare.config import Model
from experiments.lab.declare.study import Comparison, Scale, Stage

# Deviation: everything is tiny: this is a rehearsal.

ARM = Arm(
    "C1 in small",
    MATCHED.replace(dataset="fashion-mini", n_train=300, model=Model.MLP, width=16, depth=1, train_loss=0.1),
    10, 100, seeds=3,
)

STUDY = replace(
    keskar2017.STUDY,
    name="rehearsal",
    title="A rehearsal, no result",
    scales=(Scale("gpu", "a rehearsal on 300 images of Fashion-MNIST", "a minute"),),
    stages=(Stage("train", lambda request, records: ARM.runs(request), measures=measures),),
    claims=claims_of("gpu", ARM, primary=True),
    comparisons=(Comparison("gpu", "C1", f"{ARM.network}, {rule_of(ARM)}", *reversed(groups_of(ARM))),),
    module=__name__,
)
