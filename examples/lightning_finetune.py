"""Fine-tuning with Lightning: a torchvision ResNet whose trunk is frozen gets a new head.

python examples/lightning_finetune.py                  (needs fwdgrad[lightning]; --pretrained fetches ImageNet weights)

Frozen parameters (requires_grad=False) get no direction: the variance of the estimate is that of the head alone, and K
directions cost K passes through the head, not through the trunk.
Offline the trunk is random: what its features are good for, each method has to work with.

On a 2-core x86-64 virtual machine that others were using, torch 2.15, two threads; peak memory of one step above the
parameters, which here is that of the trunk's forward pass for each method:

    method                       test accuracy  seconds  peak MB
    backprop                             0.872      1.6    10.03
    forward gradient, K = 64             0.636      1.8    10.20
    forward gradient, K = 1              0.188      1.6    10.07
    (inference)                                            10.03
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
import torchvision
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fwdgrad
from fwdgrad.data import Split, load_dataset
from fwdgrad.integrations.lightning import TrainWith
from fwdgrad.memory import peak_bytes

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class FineTuned(LightningModule):
    """A frozen trunk in evaluation mode, and a new head to train."""

    def __init__(self, pretrained: bool, steps: int) -> None:
        super().__init__()
        self.trunk = torchvision.models.resnet18(weights="DEFAULT" if pretrained else None)
        self.trunk.fc = nn.Identity()
        self.trunk.requires_grad_(False).eval()
        self.head = nn.Sequential(nn.LayerNorm(512, elementwise_affine=False), nn.Linear(512, 10))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.head.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader(split: Split, batch_size: int) -> DataLoader[Any]:
    """Return batches of the digits as RGB images of 16x16 pixels."""
    images = F.interpolate(split.inputs, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    return DataLoader(TensorDataset(images, split.targets), batch_size=batch_size, shuffle=batch_size < 500)


def main() -> None:
    """Fit with each estimator and print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pretrained", action="store_true")
    arguments = parser.parse_args()
    data = load_dataset("digits")
    train, test = loader(data.train, 64), loader(data.test, 500)
    x, y = next(iter(train))
    print(f"{'method':28} {'test accuracy':>13} {'seconds':>8} {'peak MB':>8}")
    methods = {
        "backprop": fwdgrad.Backprop(),
        "forward gradient, K = 64": fwdgrad.ForwardGradient("low_rank", 64, "dual"),
        "forward gradient, K = 1": fwdgrad.ForwardGradient("low_rank", 1, "dual"),
    }
    for name, estimator in methods.items():
        torch.manual_seed(0)
        module = FineTuned(arguments.pretrained, arguments.epochs * len(train))
        trainer = Trainer(
            max_epochs=arguments.epochs,
            callbacks=[TrainWith(estimator)],
            gradient_clip_val=1.0,
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

        def step(estimator: fwdgrad.Estimator = estimator, module: nn.Module = module) -> None:
            estimator(module, lambda module: F.cross_entropy(module(x), y))

        print(f"{name:28} {result['accuracy']:13.3f} {seconds:8.1f} {peak_bytes(step) / 1e6:8.2f}")
    with torch.inference_mode():
        print(f"{'(inference)':28} {'':13} {'':8} {peak_bytes(lambda: module(x)) / 1e6:8.2f}")


if __name__ == "__main__":
    main()
