"""Curvature along the gradients that a run descends, its injected noise included."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.lab.measures.subject import Subject, head
from experiments.lab.training.batch_stream import BatchStream
from sharpness.gradients.alignment import jackknife_error

STEP = 1 << 20
"""batches from here on are those of no update that a run takes"""


def own_batch_sharpness(subject: Subject, *, batches: int) -> dict[str, Any]:
    """E_B[g_B^T H_B g_B] / E_B ||g_B||^2 over batches as the run draws them: its batch size, its weights of examples.

    g_B and H_B are gradient and Hessian of the batch's (weighted) mean loss: `sharpness.batch_sharpness` for
    gradients with injected noise. Standard error: delete-one jackknife over batches.
    """
    config, train = subject.config, subject.data.train
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    block = BatchStream(config, len(train)).block(STEP, batches)
    curvatures, squares = [], []
    for k in range(batches):
        inputs, targets = train.at(block.positions[k].to(train.targets.device), None)
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
            terms = subject.data.task.loss(subject.model(inputs), targets)
            sums = terms.sums if block.weights is None else terms.sums * block.weights[k].to(terms.sums.device)
            loss = sums.mean() if terms.weights is None else sums.sum() / terms.weight
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            square = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()  # its derivative is H g
            products = torch.autograd.grad(square, parameters)
        curvatures.append(sum((g.detach() * p).sum().item() for g, p in zip(gradients, products, strict=True)))
        squares.append(square.item())
    top, bottom = torch.tensor(curvatures, dtype=torch.float64), torch.tensor(squares, dtype=torch.float64)
    value = (top.sum() / bottom.sum()).item()
    error = jackknife_error(((top.sum() - top) / (bottom.sum() - bottom)).numpy()) if batches > 1 else None
    return {
        **head(subject, len(train), config.seed),
        "value": value,
        "standard_error": error,
        "products": batches,
        "status": "ok" if torch.isfinite(top.sum() / bottom.sum()) else "nonfinite",
        "details": {"batches": batches, "batch_size": config.batch_size, "noise_batch": config.noise_batch},
    }
