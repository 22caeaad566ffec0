"""From a batch to its estimate: the closure that an estimator calls, once or for each micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwdgrad.estimators import Estimator

Context: TypeAlias = Callable[[], AbstractContextManager[object]]


def make_closure(
    context: Context, inputs: Tensor, targets: Tensor, weight: float = 1.0
) -> Callable[[nn.Module], Tensor]:
    """Return the closure of a batch, or of a part of one with a weight: the per-example losses of a classifier.

    ``torch.compile`` traces it, so it holds nothing of the trainer.
    """

    def closure(model: nn.Module) -> Tensor:
        with context():
            losses = F.cross_entropy(model(inputs), targets, reduction="none")
        return losses if weight == 1.0 else losses * weight

    return closure


def estimate(
    estimator: Estimator,
    model: nn.Module,
    context: Context,
    inputs: Tensor,
    targets: Tensor,
    micro_batch_size: int | None = None,
) -> Tensor:
    """Accumulate the estimate of a batch, as the sum of those of its micro-batches, and return the loss.

    Each micro-batch has a forward pass, and directions, of its own: memory for as many examples, and less variance than
    one direction for all of them.
    """
    count = len(targets)
    if micro_batch_size is None or micro_batch_size >= count:
        return estimator(model, make_closure(context, inputs, targets))
    parts = zip(inputs.split(micro_batch_size), targets.split(micro_batch_size), strict=True)
    return torch.stack([estimator(model, make_closure(context, x, y, len(y) / count)) for x, y in parts]).sum()
