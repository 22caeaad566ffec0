"""A LightningModule trained without backpropagation by one line in the Trainer, on MNIST or else the digits.

python examples/lightning_mnist.py            (needs fwdgrad[lightning]; MNIST is looked for in $FWDGRAD_DATA)

On a 2-core x86-64 virtual machine that others were using, torch 2.15, one thread; peak memory of one step with 128
images, above the parameters. Eight directions together hold eight tangents, and a network of three layers has few
activations to save:

    mnist, 2 epochs
    method                   test accuracy  seconds  peak KB
    backprop                         0.971     16.1     1209
    activity perturbation            0.941     38.1     3429
    (inference)                                          262
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from typing import Any

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # the profiler would warn of memory it has not seen allocated

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fwdgrad
from fwdgrad import models
from fwdgrad.data import DataError, Dataset, load_dataset
from fwdgrad.integrations.lightning import TrainWith
from fwdgrad.memory import peak_bytes

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Classifier(LightningModule):
    """An ordinary module. An estimator may be given the loss of each example, ``reduction="none"``; some need it."""

    def __init__(self, input_shape: tuple[int, ...], steps: int, reduction: str) -> None:
        super().__init__()
        self.net = models.mlp(input_shape, 10, hidden=(256, 256))
        self.steps = steps
        self.reduction = reduction

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        losses = F.cross_entropy(self.net(x), y, reduction=self.reduction)
        self.log("train_loss", losses.mean())
        return losses

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def load() -> Dataset:
    """Return MNIST if it is on this machine, else the digits that fwdgrad carries."""
    try:
        return load_dataset("mnist", download=False)
    except DataError:
        return load_dataset("digits")


def main() -> None:
    """Fit with each estimator and print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, help="by default 2 for MNIST, 30 for the digits")
    data = load()
    epochs = parser.parse_args().epochs or (2 if data.name == "mnist" else 30)
    train = DataLoader(TensorDataset(data.train.inputs, data.train.targets), batch_size=128, shuffle=True)
    test = DataLoader(TensorDataset(data.test.inputs, data.test.targets), batch_size=500)
    x, y = next(iter(train))
    print(f"{data.name}, {epochs} epochs")
    print(f"{'method':24} {'test accuracy':>13} {'seconds':>8} {'peak KB':>8}")
    methods = {"backprop": fwdgrad.Backprop(), "activity perturbation": fwdgrad.ActivityPerturbation(num_directions=8)}
    for name, estimator in methods.items():
        torch.manual_seed(0)
        reduction = "mean" if name == "backprop" else "none"
        module = Classifier(data.input_shape, epochs * len(train), reduction)
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=[TrainWith(estimator)],  # the one line
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.perf_counter()
        trainer.fit(module, train)
        seconds = time.perf_counter() - start
        (result,) = trainer.test(module, test, verbose=False)
        module.zero_grad()

        def step(estimator: fwdgrad.Estimator = estimator, net: torch.nn.Module = module.net) -> None:
            estimator(net, lambda net: F.cross_entropy(net(x), y, reduction="none"))

        print(f"{name:24} {result['accuracy']:13.3f} {seconds:8.1f} {peak_bytes(step) / 1e3:8.0f}")
    with torch.inference_mode():
        print(f"{'(inference)':24} {'':13} {'':8} {peak_bytes(lambda: module.net(x)) / 1e3:8.0f}")


if __name__ == "__main__":
    main()
