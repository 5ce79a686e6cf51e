"""A `Problem` from what a caller passes: everything that can be checked before measuring is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from sharpness.problem.arguments import check_seed
from sharpness.problem.batches import PINNED, Data, TensorBatches, as_batches, read
from sharpness.problem.calls import Call, shapes_of
from sharpness.problem.means import Weight, share_of
from sharpness.problem.parameters import select_parameters
from sharpness.problem.problem import DataChangedError, Loss, Problem
from sharpness.problem.survey import chunks, met, surveyed
from sharpness.problem.untouched import Mode, seed_generators, untouched


def make_problem(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    seed: int = 0,
    weight: Weight | None = None,
) -> Problem:
    """Check everything that can be checked before measuring, and build the `Problem`.

    Goes through `data` once with the model, forward only, and a second time without it where data are neither tensors nor
    a list. `params` names the parameters (frozen ones may be named, and those of a loss that is a module, as "loss.NAME");
    None means all of the model with `requires_grad`.

    A pair of tensors without `batch_size` goes through the model in chunks of a length that suits the cache, in eval mode
    and where all rows show that this does not change the loss, else in one batch.

    f is what `loss` would say of all data in one batch. Batches count by their examples, or by their targets that are not
    left out (-100, NaN), whichever rule the loss of each batch follows when it is cut in two; a loss that follows neither
    (class weights) needs `weight`: "examples", "tokens", or a function of (inputs, targets). A loss that cannot be cut, or
    that pairs the examples of a batch, is averaged over batches by their examples. A sum-reduced loss is refused: its
    curvature would scale with the batch size.

    Data that change between passes (a loader with a generator of its own) are kept in memory as the first pass gave them,
    up to 2 GiB. Numpy's and Python's global generators are seeded for each pass, as torch's are.

    Raises ValueError, in one sentence, for anything of the wrong kind: a model or loss that fails, a loss that is not finite
    on a batch, data that never end.
    """
    if mode not in ("eval", "train"):
        raise ValueError(f"mode is {mode!r}: it must be 'eval' or 'train'")
    check_seed(seed)
    names, parameters = select_parameters(model, params, loss)
    if not callable(loss):
        raise ValueError(f"loss is {shapes_of(loss)}: pass a function of (outputs, targets), such as F.cross_entropy")
    batches = as_batches(data, batch_size)
    if weight is not None:
        share_of(weight)
    originals = [p.data for p in model.parameters()]
    with untouched(model, parameters, mode, loss=loss, writes=True):
        given, prints = read(batches, lambda: seed_generators(parameters, seed))
        draft = Problem(model, loss, given if prints is None else batches, names, parameters, mode, seed, 0, 0, 1.0,
                        weight or "examples", Call(), prints=prints)
        whole = isinstance(batches, TensorBatches) and batch_size is None and mode == "eval"
        met_with = draft if given is None else replace(draft, data=given)
        draft = replace(met(met_with, whole, originals), data=draft.data)
        if whole and isinstance(batches, TensorBatches):
            parts = chunks(draft, batches)
            if len(parts) > 1 and (found := surveyed(replace(draft, data=parts), None, apart=True)):
                return found
        try:
            found = surveyed(draft, weight)
        except DataChangedError as changed:
            if given is None:
                raise ValueError(f"{changed} (they are too large to be kept: {PINNED // 2**30} GiB)") from None
            found = surveyed(replace(draft, data=given, prints=None), weight)
    assert found is not None
    return found


def in_chunks(problem: Problem, parts: int) -> Problem:
    """The same function with each batch of a pair of tensors in that many parts, where that is allowed: inside
    `untouched`, in eval mode, and without changing the loss. Else the problem itself."""
    data = problem.data
    if problem.mode != "eval" or not isinstance(data, TensorBatches) or data.batch_size < 2 * parts:
        return problem
    smaller = replace(data, batch_size=-(-data.batch_size // parts))
    found = surveyed(replace(problem, data=smaller), None, apart=True)
    return found if found and (problem.batches == 1 or found.weight == problem.weight) else problem
