"""A small Lightning module, its data, and a trainer that keeps quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class Classifier(LightningModule):
    """Dropout, BatchNorm, a metric, and a training step that knows nothing of estimators."""

    def __init__(self, lr: float = 0.1, optimizer: str = "SGD", width: int = 8, decay: float = 1.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 3)
        )
        self.accuracy = MulticlassAccuracy(3, average="micro", validate_args=False)
        self.lr, self.optimizer, self.decay = lr, optimizer, decay

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss", loss)
        self.log_dict({"twice": 2 * loss, "number": 3.0})
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)]


def classifier(**kwargs: Any) -> Classifier:
    torch.manual_seed(1)
    return Classifier(**kwargs)


def loader(batches: int = 4, size: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batches * size, 4, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=size)


def trainer(*callbacks: Any, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1}
    return Trainer(callbacks=list(callbacks), **{**quiet, **kwargs})


def flat(module: nn.Module) -> Tensor:
    return torch.cat([param.detach().flatten() for param in module.parameters()])


HERE = Path(__file__).parent
