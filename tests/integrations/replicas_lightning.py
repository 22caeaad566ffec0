"""Twenty steps of Lightning on two gloo processes; run by a test, which reads what it prints."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from lightning_samples import Classifier, flat, loader, trainer
from torch import Tensor

import fwdgrad
from fwdgrad.integrations.lightning import TrainWith

warnings.simplefilter("ignore")
exchanged: list[int] = []
all_reduce = dist.all_reduce


def spy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    exchanged.append(tensor.numel())
    return all_reduce(tensor, *args, **kwargs)


def gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(parts, tensor)
    return parts


class Reports(Classifier):
    def on_train_start(self) -> None:
        self.before = flat(self)

    def on_train_end(self) -> None:
        equal = torch.equal(*gather(flat(self)))
        losses = gather(self.trainer.callback_metrics["loss"])
        pattern = "[1, 1] [3] * 20" if exchanged == [1, 1] + [3] * 20 else exchanged
        print(
            f"rank {self.global_rank}: equal {equal}, trained {not torch.equal(flat(self), self.before)}, "
            f"different data {not torch.equal(*losses)}, exchanged {pattern}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.all_reduce = spy
    estimator = fwdgrad.ForwardGradient(engine="dual", num_directions=3)
    fit = trainer(TrainWith(estimator), max_epochs=-1, max_steps=20, devices=2, strategy="ddp_fork")
    fit.fit(Reports(optimizer="Adam"), loader(40))
