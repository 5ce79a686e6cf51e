"""keskar2017's scale `gpu` in so small that a CPU finishes it in a minute: tries what a visit does, and says nothing else.

Known only to a rehearsal, which adds this folder to the places where studies are looked for.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import keskar2017
from experiments.lab.declare import Scale

TINY = keskar2017.Minima(
    name="C1 in small", n_train=300, width=16, depth=1, batch_sizes=(10, 100), seeds=3, target=0.1, slices=False
)

STUDY = replace(
    keskar2017.STUDY,
    name="rehearsal",
    title="A rehearsal, no result",
    scales=(Scale("gpu", "a rehearsal on 300 images of Fashion-MNIST", "a minute", TINY),),
    claims=(), figures=(), comparisons=(),  # made anew of the settings
    deviations=("Everything is tiny: this is a rehearsal.",),
    module=__name__,
)
