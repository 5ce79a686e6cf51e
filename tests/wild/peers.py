"""What other tools do in the same situations: one product with the Hessian, as their manuals show. Writes peers.json.

From the project's root, with the tools of tests/peers.txt installed:   python tests/wild/peers.py [part of a name ...]
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
RECORD = HERE / "peers.json"
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from wild.measures import SECONDS, TooLong, judged, limited, vector  # noqa: E402
from wild.situation import Case  # noqa: E402
from wild.situations import SITUATIONS  # noqa: E402
from wild.snapshot import changes, snapshot  # noqa: E402

PEERS = {"PyHessian": "pyhessian", "curvlinops": "curvlinops-for-pytorch", "hessian-eigenthings": "hessian-eigenthings"}
_ALWAYS = ("torch's generator", "attention's fast path")  # not counted as a change of the model


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def pieces(model: nn.Module) -> list[torch.Tensor]:
    chosen = parameters(model)
    flat = torch.from_numpy(vector(sum(p.numel() for p in chosen)))
    return [part.reshape(p.shape).to(p.dtype) for part, p in zip(flat.split([p.numel() for p in chosen]), chosen, strict=True)]


def flat(parts: Any) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1).double() for t in parts]).numpy()


def pyhessian_product(c: Case) -> np.ndarray:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    v = pieces(c.model)
    if isinstance(c.data, tuple):
        found = hessian(c.model, c.loss, data=c.data, cuda=False)
        return flat(hessian_vector_product(found.gradsH, found.params, v))
    found = hessian(c.model, c.loss, dataloader=c.data, cuda=False)
    return flat(found.dataloader_hv_product(v)[1])


class MeanLoss(nn.Module):
    """A loss as curvlinops wants it: a module that says how it is reduced."""

    reduction = "mean"

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = (loss,)

    def forward(self, outputs: Any, targets: Any) -> torch.Tensor:
        return self.loss[0](outputs, targets)


def curvlinops_product(c: Case) -> np.ndarray:
    from curvlinops import HessianLinearOperator

    loss = c.loss if hasattr(c.loss, "reduction") else MeanLoss(c.loss)
    data = [c.data] if isinstance(c.data, tuple) else c.data
    op = HessianLinearOperator(c.model, loss, parameters(c.model), data)  # pyright: ignore[reportArgumentType]
    return flat([op @ torch.from_numpy(flat(pieces(c.model))).float()])


def eigenthings_product(c: Case) -> np.ndarray:
    from hessian_eigenthings import HessianOperator

    oracles = c.oracles() if c.oracles else []
    call = oracles[0].call if oracles else lambda model, inputs: model(inputs)
    data = [c.data] if isinstance(c.data, tuple) else c.data
    op = HessianOperator(c.model, data, lambda model, batch: c.loss(call(model, batch[0]), batch[1]))
    return flat([op.matvec(torch.from_numpy(flat(pieces(c.model))).float())])


PRODUCTS: dict[str, Callable[[Case], np.ndarray]] = {
    "PyHessian": pyhessian_product,
    "curvlinops": curvlinops_product,
    "hessian-eigenthings": eigenthings_product,
}


def asked(product: Callable[[Case], np.ndarray], c: Case, tolerance: float) -> str:
    """ "right", how far off, or the exception; and whether the model was changed, .grad and its mode apart."""
    c.model.train(c.mode == "train")
    before, grads = snapshot(c.model, c.loss), [(p, p.grad) for p in c.model.parameters()]
    try:
        with limited(SECONDS):
            numbers = product(c)
    except TooLong:
        return f"no answer within {SECONDS} s"
    except Exception as error:
        word = type(error).__name__
    else:
        word = judged(numbers, [o.hessian @ vector(o.n) for o in c.oracles()] if c.oracles else [], tolerance)
        word = word.removeprefix("wrong: ")
    c.model.train(c.mode == "train")
    for p, grad in grads:
        p.grad = grad
    moved = [name for name in changes(before, snapshot(c.model, c.loss)) if name not in _ALWAYS]
    return f"{word}, model changed" if moved else word


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes: dict[str, dict[str, str]] = json.loads(RECORD.read_text())["outcomes"] if sys.argv[1:] else {}
    for s in SITUATIONS:
        if sys.argv[1:] and not any(part in s.name for part in sys.argv[1:]):
            continue
        if s.make().oracles is None:
            continue  # nothing to compare with
        outcomes[s.name] = {name: asked(product, s.make(), s.tolerance) for name, product in PRODUCTS.items()}
        print(s.name, outcomes[s.name], flush=True)
    versions = {name: version(package) for name, package in PEERS.items()} | {"torch": torch.__version__}
    RECORD.write_text(json.dumps({"versions": versions, "outcomes": outcomes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
