"""Learning-rate schedules stepped once per training step."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, ReduceLROnPlateau


def exponential_decay(optimizer: Optimizer, rate: float) -> ExponentialLR:
    """Multiply the learning rate by ``exp(-rate)`` at every step.

    Source: Baydin et al., "Gradients without Backpropagation", 2022, arXiv:2202.08587, section 5 (rate 1e-4).

    Raises:
        ValueError: if the rate is negative or no number.
    """
    if not isinstance(rate, int | float) or rate < 0:
        raise ValueError(f"rate must be a number that is not negative, got {rate!r}")
    return ExponentialLR(optimizer, math.exp(-rate))


def advance_schedule(scheduler: LRScheduler, steps: int) -> None:
    """Bring a new scheduler, and with it its optimizer's learning rate, to where it is after some steps."""
    if isinstance(scheduler, ReduceLROnPlateau):  # follows the validation loss, not the step
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        for _ in range(steps):
            scheduler.step()


def load_optimizer_buffers(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load momentum and the like from the state of another optimizer, but keep the learning rate and other settings."""
    groups = optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in state["param_groups"]]:
        raise ValueError("the checkpoint's optimizer has other parameter groups")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
