"""Loss and accuracy of a classifier on a whole split."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fwdgrad.data import Batches, Split


class Score(NamedTuple):
    """Mean cross-entropy (nats) and the fraction of examples classified correctly."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, batch_size: int, context: AbstractContextManager[object] | None = None
) -> Score:
    """Score the model on the split in evaluation mode, and leave the mode as it was.

    Args:
        model: maps inputs (B, ...) to logits (B, classes).
        split: inputs and targets, on the model's device.
        batch_size: examples at a time; the score does not depend on it.
        context: entered around each forward pass, for instance autocast.
    """
    training = model.training
    model.eval()
    loss = correct = torch.zeros((), device=split.targets.device)
    try:
        for inputs, targets in Batches(split, batch_size, shuffle=False).epoch(0):
            with context or nullcontext():
                logits = model(inputs).float()
            loss = loss + F.cross_entropy(logits, targets, reduction="sum")
            correct = correct + (logits.argmax(1) == targets).sum()
    finally:
        model.train(training)
    return Score(loss.item() / len(split), correct.item() / len(split))
