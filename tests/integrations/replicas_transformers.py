"""Twenty steps of the Trainer on one of two gloo processes; run by a test, which reads what it prints."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers_samples import arguments, examples, flat, make

import fwdgrad
from fwdgrad.integrations.transformers import EstimatorTrainer

warnings.simplefilter("ignore")
exchanged: list[tuple[int, ...]] = []
all_reduce = dist.all_reduce


def spy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    exchanged.append(tuple(tensor.shape))
    return all_reduce(tensor, *args, **kwargs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.all_reduce = spy
    model = make("bert")
    before = flat(model)
    settings = arguments(Path(sys.argv[1]), max_steps=20, ddp_backend="gloo", optim="adamw_torch", learning_rate=0.01)
    estimator = fwdgrad.ForwardGradient(engine="dual", num_directions=3)
    EstimatorTrainer(model, settings, train_dataset=examples("bert", 160), estimator=estimator).train()
    both = [torch.empty_like(before) for _ in range(2)]
    dist.all_gather(both, flat(model))
    large = [shape for shape in exchanged if shape not in [(), (1,), (3,)]]
    print(
        f"rank {dist.get_rank()}: equal {torch.equal(*both)}, trained {not torch.equal(both[0], before)}, "
        f"derivatives exchanged {exchanged.count((3,))} times{f', and {large}' if large else ''}"
    )
