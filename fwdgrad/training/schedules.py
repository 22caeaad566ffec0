"""Learning-rate schedules stepped once per training step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR


def exponential_decay(optimizer: Optimizer, rate: float) -> ExponentialLR:
    """Multiply the learning rate by ``exp(-rate)`` at every step.

    Source: Baydin et al., "Gradients without Backpropagation", 2022, arXiv:2202.08587, section 5 (rate 1e-4).
    """
    return ExponentialLR(optimizer, math.exp(-rate))
