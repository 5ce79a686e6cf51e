# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Who is right? All verdicts, and what they hang on
#
# Every study asks a paper's question of runs of its own; this notebook lays the answers side by side. It trains
# nothing: it reads the verdicts and records that the repository publishes.

# %%
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, display

from analysis import margins
from analysis.draw import draw
from analysis.figures import forest
from analysis.load import from_published
from analysis.style import save
from experiments.lab.declare.checkout import FIGURES
from experiments.lab.sweep import board

verdicts = board.published()
primary = [verdict for verdict in verdicts if verdict["primary"]]
print(f"{len(verdicts)} claims: {board.tally(verdicts)}")

# %% [markdown]
# ## Every primary claim
#
# Effects and intervals in units of the claim's margin, the smallest effect worth speaking of. Right of 0 is the
# paper's side. A claim of a difference (disc) is reproduced where its thin interval lies right of 0, and is no
# effect where its thick one lies within the grey band; a claim of at most a margin (square) is reproduced there.

# %%
display(Image(data=save(forest.make_figure(forest.frame(primary, studies=True)), "png"), width=760))

# %% [markdown]
# ## What if the margins were others?
#
# Margins are choices. The intervals are not touched by them, so every verdict can be read at any margin without
# a new run: here all margins are multiplied by one factor. Lines that stay level are results that nobody's
# taste can change.

# %%
factors = [0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4]
counts = pd.DataFrame(
    [Counter(margins.at(verdict, factor * verdict["margin"]) for verdict in verdicts) for factor in factors],
    index=pd.Index(factors, name="margins multiplied by"),
).fillna(0)
axes = counts.plot(color=forest.COLOURS, marker="o", logx=True, figsize=(6.5, 3.6))
axes.set_xticks(factors, [f"{factor:g}" for factor in factors], minor=False)
axes.minorticks_off()
axes.set_ylabel("claims")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %% [markdown]
# The verdicts that half or twice the margin would change: those to read with care.

# %%
turning = [
    {name: v[name] for name in ("study", "scale", "sentence", "verdict")}
    | {"margin (the same)": margins.words(v)}
    | {f"at {factor:g} times": margins.at(v, factor * v["margin"]) for factor in (0.5, 2)}
    for v in verdicts
    if {margins.at(v, factor * v["margin"]) for factor in (0.5, 2)} != {v["verdict"]}
]
with pd.option_context("display.max_colwidth", 90):
    display(pd.DataFrame(turning))

# %% [markdown]
# ## Smith, Elsen and De, or Shallue et al.?
#
# `smith2020` asks it of the same runs twice: at an equal number of steps, every learning rate tuned, is the best
# of the smaller batch sizes better than the largest by more than the margin, or not? The answer hangs on the
# learning rates that tuning picks, so here is every one that was tried: means over tuning seeds.


# %%
def by_learning_rate(scale, value):
    runs = from_published(FIGURES / "smith2020" / scale).runs
    main = runs[runs["stage"].isin(["tune", "extend", "confirm"]) & (runs["budget"] == "steps")]
    return main.pivot_table(index="lr", columns="batch_size", values=value)


for scale in sorted(path.name for path in (FIGURES / "smith2020").iterdir()):
    print(f"{scale}: {from_published(FIGURES / 'smith2020' / scale).study.scale(scale).about}")
    for verdict in [v for v in verdicts if (v["study"], v["scale"]) == ("smith2020", scale)][:3]:
        print(f"  {verdict['verdict'].upper()}: {verdict['sentence']}: {board.effect(verdict)}; margin {margins.words(verdict)}")
    for value in ("validation_accuracy", "test_accuracy", "train_loss"):
        print(f"{value} by learning rate and batch size")
        table = by_learning_rate(scale, value).style.format("{:.3g}", na_rep="")
        best = table.highlight_min if value == "train_loss" else table.highlight_max
        display(best(axis=0, props="font-weight: bold"))

# %% [markdown]
# ## Is it the noise?
#
# `dose` adds the gradient noise of a small batch to a large one, at the same number of updates and learning
# rate. If the noise is what helps, the two lines coincide.

# %%
folder = Path(tempfile.mkdtemp())
for scale in sorted(path.name for path in (FIGURES / "dose").iterdir()):
    tables = from_published(FIGURES / "dose" / scale)
    figure = next(figure for figure in tables.study.figures if figure.name == "dose_response")
    print(f"{scale}: {tables.study.scale(scale).about}")
    display(Image(filename=draw(figure, tables, folder / scale).files[1]))
