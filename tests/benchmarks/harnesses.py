"""Lightning, Hugging Face Trainer, skorch and ours on the same network, data, optimizer and batch size.

Run by bench_training.py with build/harnesses/bin/python; prints one JSON document. Each harness without bars, logs,
checkpoints, evaluation and workers, over a TensorDataset in memory; skorch without its callbacks; once with the fused
optimizer that ours has and, where manuals write torch.optim.Adam(...), once with that. What is timed is everything from the
end of the first epoch to the end of the last.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import argparse  # noqa: E402
import contextlib  # noqa: E402
import functools  # noqa: E402
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import engine  # noqa: E402
import pytorch_lightning as lightning  # noqa: E402
import skorch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from engine import MLP, Block  # noqa: E402
from loops import loss_on_all, net  # noqa: E402
from timing import compared, here  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

BATCH_SIZE, LR = 32, 1e-3
Marks = list[tuple[float, float]]


def mark(marks: Marks) -> None:
    marks.append((time.process_time(), time.perf_counter()))


def with_lightning(model: nn.Module, data: engine.Data, epochs: int, marks: Marks, fused: bool | None) -> None:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            inputs, targets = batch
            return nn.functional.cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.model.parameters(), LR, fused=fused)

    class Epochs(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            mark(marks)

    batches = DataLoader(TensorDataset(data.train.inputs, data.train.targets), BATCH_SIZE, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Epochs()],
    )
    trainer.fit(Module(), batches)


def with_trainer(model: nn.Module, data: engine.Data, epochs: int, marks: Marks, fused: bool | None) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(inputs)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Epochs(transformers.TrainerCallback):
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            mark(marks)

    def collate(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"inputs": torch.stack([x for x, _ in pairs]), "labels": torch.stack([y for _, y in pairs])}

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH_SIZE, learning_rate=LR, max_grad_norm=0.0,
            lr_scheduler_type="constant", weight_decay=0.0, optim="adamw_torch_fused" if fused else "adamw_torch",
            logging_strategy="no", save_strategy="no", eval_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            dataloader_num_workers=0, dataloader_drop_last=True, dataloader_pin_memory=False, logging_nan_inf_filter=False,
        )
        examples: Any = TensorDataset(data.train.inputs, data.train.targets)
        trainer = transformers.Trainer(Module(), arguments, collate, examples, callbacks=[Epochs()])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def with_skorch(model: nn.Module, data: engine.Data, epochs: int, marks: Marks, fused: bool | None) -> None:
    class Epochs(skorch.callbacks.Callback):
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            mark(marks)

    unused = {f"callbacks__{name}": None for name in ("epoch_timer", "train_loss", "valid_loss", "print_log")}
    trained = skorch.NeuralNet(
        model, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, optimizer__fused=fused, lr=LR, max_epochs=epochs,
        batch_size=BATCH_SIZE, iterator_train__shuffle=True, iterator_train__drop_last=True, train_split=None,
        callbacks=[Epochs()], verbose=0, **unused,
    )
    trained.fit(data.train.inputs, data.train.targets)
    model.load_state_dict(trained.module_.state_dict())  # it may have trained a copy


Fit = Callable[[nn.Module, engine.Data, int, Marks, bool | None], None]
HARNESSES: dict[str, tuple[str, Fit, bool | None]] = {
    "Lightning": ("pytorch-lightning", with_lightning, True),
    "Hugging Face Trainer": ("transformers", with_trainer, True),
    "skorch": ("skorch", with_skorch, True),
    "Lightning, plain Adam": ("pytorch-lightning", with_lightning, None),
    "skorch, plain Adam": ("skorch", with_skorch, None),
}
"""name: package, how it fits, and whether its Adam is fused (None: torch's default); the Trainer's default is fused"""


def fitted(fit: Fit, fused: bool | None, data: engine.Data, weights: list[Tensor], epochs: int) -> tuple[Block, nn.Module]:
    config = MLP.config(BATCH_SIZE, 1)
    model, marks = net(config, data.shape, weights).train(), Marks()
    with contextlib.redirect_stdout(sys.stderr):
        fit(model, data, epochs, marks, fused)
    if len(marks) != epochs:
        raise RuntimeError(f"{len(marks)} epochs were trained, not {epochs}")
    cpu, wall = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
    return Block((epochs - 1) * (len(data.train) // BATCH_SIZE), cpu, wall), model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    engine.as_a_worker()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = MLP.config(BATCH_SIZE, chosen.epochs * (MLP.n // BATCH_SIZE))
    data, weights = engine.data_of(config), engine.initial_weights(config)
    loss, each = engine.loss_after(config, data), (chosen.epochs - 1) * (MLP.n // BATCH_SIZE)
    found: dict[str, Any] = {"net": MLP.name, "batch_size": BATCH_SIZE, "epochs": chosen.epochs, "machine": here(), "rows": {}}
    for name, (package, fit, fused) in HARNESSES.items():
        fits = functools.partial(fitted, fit, fused, data, weights, chosen.epochs)
        _, model = fits()
        ours, others, _ = engine.interleaved(config, data, each, chosen.rounds, lambda fits=fits: fits()[0])
        row = compared(ours, others) | {"losses": [loss, loss_on_all(model, data)]}
        found["rows"][name] = {"version": importlib.metadata.version(package)} | row
        own, theirs = row["cpu"]["seconds"]
        print(f"  {name:22} {theirs * 1e6:7.0f} us per update, ours {own * 1e6:5.0f} us: {row['cpu']['ratio']:.2f} x"
              f"  (loss {row['losses'][1]:.3g}, ours {row['losses'][0]:.3g})",
              file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
