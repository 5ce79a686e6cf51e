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
# # Quickstart: batch size, sharpness and generalization
#
# This notebook reads the records of the study `keskar2017` at scale `quick`, answers its claims and redraws its
# figures. It trains nothing. By default it reads what the repository publishes; set `BATCHLAB_STORE` to the
# folder of a store to read your own runs (`python -m experiments run keskar2017 --scale quick` makes them).

# %%
import os
import tempfile
from pathlib import Path

from IPython.display import Image, Markdown, display

from analysis.draw import draw
from analysis.figures import generalization_gap
from analysis.load import find, from_published, from_store
from analysis.tables import cell_table, paper_table, render, verdict_table
from analysis.verdicts import verdicts
from experiments.lab.declare.checkout import FIGURES
from experiments.lab.store.records import Store

STUDY, SCALE = "keskar2017", "quick"

if store := os.environ.get("BATCHLAB_STORE"):
    tables = from_store(find(STUDY, SCALE), SCALE, Store(Path(store).expanduser(), create=False))
else:
    tables = from_published(FIGURES / STUDY / SCALE)

print(
    f"{len(tables.runs)} runs, {len(tables.measurements)} measurements from the {tables.source} records; "
    f"{tables.missing_runs} runs and {tables.missing_measurements} measurements are missing"
)

# %% [markdown]
# The records are four pandas frames. `runs` has one row a finished run: every field of its configuration and
# every number of its summary. `history`, `measurements` and `correct` (a bit per test example) refer to it by `run_id`.

# %%
tables.runs[["run_id", "batch_size", "seed", "status", "epochs", "train_loss", "test_accuracy", "gap_accuracy"]].head()

# %% [markdown]
# ## Verdicts
#
# Each claim, its margin and its test were fixed before the runs. Effects are oriented: positive is the paper's
# side. A verdict is `reproduced` or `contradicted` when the interval lies wholly on one side of 0, `no effect`
# when the 90% interval lies within the margin, and `inconclusive` when the runs cannot tell or a condition of
# the comparison failed.


# %%
def show(table):
    display(Markdown(f"{render(table, 'md')}\n*{table.title}*"))


found = verdicts(tables)
show(verdict_table(found))

# %% [markdown]
# One verdict in full. `runs` names the runs behind it, `claim_hash` the exact claim that it answers;
# `p_permutation` and the bootstrap over seeds and test examples (`both_low`, `both_high`) stand beside the test
# that decides.

# %%
{name: value for name, value in found[0].to_dict().items() if name != "runs"}

# %% [markdown]
# ## Tables
#
# What was measured in each cell, and ours beside the numbers that the paper prints. Networks, data and batch
# sizes differ from the paper's, so compare directions and orders of magnitude.

# %%
show(cell_table(tables))

# %%
show(paper_table(tables))

# %% [markdown]
# ## Figures
#
# Every figure is written as PDF, PNG, CSV (each plotted value) and JSON (the runs, commits and claims it comes
# from). Here they go below a temporary folder; `python -m analysis figures` writes them below the store.

# %%
folder = Path(tempfile.mkdtemp())
figures = {figure.name: figure for figure in tables.study.figures}


def redraw(name):
    drawn = draw(figures[name], tables, folder)
    display(Image(filename=drawn.files[1]))


# %% [markdown]
# **Generalization gap.** A dot is a seed, the line joins means, a bar is the 95% interval of a mean. The left
# panel is the difference of the other two. Bars of cells with few seeds are long: they speak of that cell
# alone, while the verdict compares the two batch sizes that the claim names.

# %%
redraw("generalization_gap")

# %% [markdown]
# **Sharpness against batch size.** The largest Hessian eigenvalue and Keskar's sharpness $\varphi$, in the full
# space and in a random subspace, on logarithmic axes; means and intervals are of logarithms. Curvature itself
# depends on the training loss, so the runs stop at the same one: look at `train_loss` above before reading a
# trend.

# %%
redraw("sharpness_vs_batch")

# %% [markdown]
# **Parametric slice.** Loss and accuracy along the straight line from the small-batch minimiser ($\alpha = 0$)
# through the large-batch one ($\alpha = 1$). Thin lines are pairs of runs with the same seed, thick ones their
# mean. How steeply a curve rises around a minimiser depends on the direction and on the scale of the weights:
# it is a picture, not a measurement of sharpness.

# %%
redraw("parametric_slice")

# %% [markdown]
# **The plane through both minimisers and their start.** Training loss on a logarithmic colour scale; distances are those
# of weights.

# %%
redraw("contour")

# %% [markdown]
# **Training curves.** Accuracy on training and test examples along training, on a logarithmic axis of epochs.
# Thin lines are seeds, thick ones medians. Curves end at the last recorded epoch before the training loss at which the study
# compares them.

# %%
redraw("training_curves")

# %% [markdown]
# **Accuracy and sharpness against batch size**, side by side: is there a batch size beyond which both get worse (the
# paper's Figure 4)?

# %%
redraw("accuracy_and_sharpness")

# %% [markdown]
# **Piggybacking.** The large batch starts from weights that the small one has trained for a while (the paper's Figure 5):
# from right to left it trains fewer of the 60 epochs itself. Four seeds; no claim is about it.

# %%
redraw("piggyback")

# %% [markdown]
# **Sharpness along training** (the paper's Figure 6 plots it against the loss). Thin lines are two seeds, thick ones their mean.

# %%
redraw("sharpness_along")

# %% [markdown]
# ## Going on
#
# The plotted values are ordinary tables, ready for a figure of your own.

# %%
options = generalization_gap.settings() | dict(figures["generalization_gap"].options)
generalization_gap.load_data(tables, options).query("role == 'mean' and quantity == 'gap_accuracy'")
