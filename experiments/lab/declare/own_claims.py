"""A study's claims and figures for a user's own task: no number of the paper, and loss where there is no accuracy."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.lab.declare.claims import Claim
from experiments.lab.declare.study import Figure

NO_PAPER = "none: a task of your own"
LOSSES = {"test_accuracy": "test_loss", "train_accuracy": "train_loss", "validation_accuracy": "validation_loss",
          "gap_accuracy": "gap_loss"}
"""what is looked at where there is no accuracy; a gap keeps its sign, an accuracy does not"""
POINT = 0.01
"""of the initial loss: what a percentage point of accuracy counts as. From chance to no error are 100 points, and the loss"""


def own_claim(claim: Claim, chance: float | None) -> Claim:
    """`claim` without the paper's number. `chance` is the accuracy in percent of a guess, as which a diverged run counts (None:
    as the claim says)."""
    sentence = claim.sentence.removeprefix("analogue: ").removeprefix("analogue, ")
    diverged = claim.diverged_as if claim.diverged_as is None or chance is None else chance
    return dataclasses.replace(claim, sentence=sentence, paper_value=None, paper_source=NO_PAPER, diverged_as=diverged)


def in_loss(claim: Claim, initial: float) -> Claim | None:
    """`claim`, worded in accuracy, asked of the loss: a point counts as POINT of the `initial` loss. None where it cannot be."""
    contrast, family = claim.contrast, claim.contrast.family
    options = dict(family.options) if family else {}
    asked = {contrast.value, *(value for value in options.values() if isinstance(value, str))}
    if not any("accuracy" in name for name in asked):
        return claim
    if any("accuracy" in name and name not in LOSSES for name in asked):
        return None
    point, flipped = POINT * initial, contrast.value in LOSSES and contrast.value != "gap_accuracy"
    if family is not None:
        if "larger_is_better" in options or family.statistic in ("stable_range", "best_at"):
            options["larger_is_better"] = not options.get("larger_is_better", True)
        if "tolerance" in options:
            options["tolerance"] *= point
        options = {name: LOSSES.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
        family = dataclasses.replace(family, options=tuple(options.items()))
    points = contrast.unit == "percentage points"
    note = f" (asked in loss, for there is no accuracy: a point is {POINT:.0%} of the initial loss, {initial:.3g})"
    return dataclasses.replace(
        claim, sentence=claim.sentence + note, margin=float(f"{claim.margin * point:.3g}") if points else claim.margin,
        diverged_as=None if claim.diverged_as is None else initial,
        contrast=dataclasses.replace(
            contrast, value=LOSSES.get(contrast.value, contrast.value), family=family, unit="loss" if points else contrast.unit,
            sign=-contrast.sign if points and flipped else contrast.sign,
        ),
    )


def figure_in_loss(figure: Figure) -> Figure:
    """`figure` of losses where it was of accuracies."""
    return dataclasses.replace(figure, options=tuple((name, _lost(value)) for name, value in figure.options))


def _lost(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(_lost(one) for one in value))
    return LOSSES.get(value, value) if isinstance(value, str) else value
