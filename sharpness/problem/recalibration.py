"""Running statistics of batch normalisation at moved weights: they belong to the weights they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sharpness.problem.arguments import check_model, shown

BnMode = Literal["keep", "interpolate", "recalibrate"]
"""What becomes of buffers at moved weights. keep: those of the centre or the model. interpolate: between the
two ends of a path. recalibrate: running statistics recomputed at every point."""

BN_MODES = ("keep", "interpolate", "recalibrate")


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[tuple[Any, Any]]) -> None:
    """Recompute, in place, running_mean and running_var of every normalisation layer of `model`.

    running = sum_b (m_b / M) statistic_b over one pass, with m_b the values per channel that the layer saw in
    batch b (for batches of one size, the plain cumulative average) and statistic_b the mean, or the unbiased
    variance, of that batch. The layers are nn.BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm that tracks, and
    whatever derives from torch's `_BatchNorm`; layers without running statistics are left alone.

    Only these layers are in train mode meanwhile: dropout is off, so that the statistics are those of the
    network that eval mode measures. Train/eval flags and momenta are restored. The average of variances
    within batches leaves out the variance between batch means, a fraction of about 1 / batch size: use
    batches of some hundred examples, and the same ones for networks to be compared.

    Args:
        batches: (inputs, targets) pairs on the model's device; targets are not used.

    Raises:
        ValueError: no batch, something else than pairs, a batch with one value per channel, or a layer that
            keeps running statistics without deriving from torch's (pass your own hook for those).
    """
    check_model(model)
    recalibrate(model, _inputs(batches), model)


def recalibrate(model: nn.Module, inputs: Iterable[Any], forward: Callable[[Any], Any]) -> None:
    """As `recalibrate_batch_norm`; `forward` is how the model is called on inputs."""
    layers = _layers(model)
    if not layers:
        return
    seen = dict.fromkeys(layers, 0.0)

    def weigh(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, _NormBase)
        values = args[0].numel() / layer.num_features
        if values < 2:
            raise ValueError(
                "calibration has a batch with one value per channel, whose variance is not defined: "
                "choose batches of more examples"
            )
        seen[layer] += values
        layer.momentum = values / seen[layer]

    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        with torch.no_grad(), watched_statistics(model, layers, weigh):
            for layer in layers:
                layer.reset_running_stats()
            for given in inputs:
                forward(given)
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum


@contextmanager
def watched_statistics(
    model: nn.Module, layers: Sequence[nn.Module], watch: Callable[[nn.Module, tuple[Any, ...]], None]
) -> Iterator[None]:
    """A pass for statistics: `layers` in train mode and everything else in eval mode, so that each normalises with what it sees
    and dropout is off. `watch` gets each layer and its inputs before it runs. Flags are as before on exit."""
    flags = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.train()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in flags:
            module.training = flag


def refuse_unknown_statistics(model: nn.Module) -> None:
    """Raise ValueError for a layer whose running statistics `recalibrate_batch_norm` would not touch."""
    for name, module in model.named_modules():
        kept = [key for key in ("running_mean", "running_var") if module._buffers.get(key) is not None]
        if kept and not isinstance(module, _NormBase):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) keeps {kept[0]} and does not derive from torch's "
                "_BatchNorm: pass recalibrate=, a function that recomputes it"
            )


def _layers(model: nn.Module) -> list[_NormBase]:
    refuse_unknown_statistics(model)
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


def _inputs(batches: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
    if not hasattr(batches, "__iter__"):
        raise ValueError(f"batches is {shown(batches)}: pass a list or DataLoader of pairs (inputs, targets)")
    empty = True
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(
                f"calibration holds a {type(batch).__name__} where a pair (inputs, targets) belongs: pass a "
                "list or DataLoader of such pairs"
            )
        empty = False
        yield batch[0]
    if empty:
        raise ValueError("calibration has no batch: pass at least one")
