"""What keeps a run from being spoilt by a few directional derivatives: clipping, and skipping those not finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.estimators.base import check_positive_integer

RATE = 0.1


class NonFiniteDerivativeError(RuntimeError):
    """Directional derivatives were not finite in too many steps in a row."""


class Safeguard:
    """Clips directional derivatives at a multiple of their running median, and skips those that are not finite.

    A derivative d becomes ``min(max(d, -m q), m q)`` with the running median q of ``|d|`` before this step. For normal
    directions d is normal, and clipping shrinks the estimate by exactly ``P(|z| < 0.6745 m)`` with z standard normal
    (0.957 for m = 3, 0.823 for 2) without turning it; the second moment shrinks by more. What it is for are derivatives
    far outside of that: of single examples, or of a loss whose slope jumps. The median follows by
    ``log q += rate (share of |d| above q - share below)``, which no outlier can move further than ``rate`` = 0.1 a step
    (more in the first ten), and starts from the median of the first step, which is not clipped.

    A derivative that is not finite counts as zero.

    Args:
        clip: m, or None not to clip.
        patience: after how many steps in a row with a derivative that is not finite to stop.

    Raises:
        ValueError: if a number is out of range.
        NonFiniteDerivativeError: by ``observe``. Off the CPU it looks once in ``patience`` steps, not to wait for the
            device in each.
    """

    def __init__(self, clip: float | None = None, patience: int = 10) -> None:
        if clip is not None and (not isinstance(clip, int | float) or isinstance(clip, bool) or not clip > 0):
            raise ValueError(f"clip_derivatives must be a positive number of medians or None, got {clip!r}")
        self.clip = clip
        self.patience = check_positive_integer("patience", patience)
        self.median = torch.tensor(torch.nan, dtype=torch.float64)
        self.steps = 0
        self.skipped: Tensor | int = 0
        """How many derivatives were not finite so far."""
        self._in_a_row: Tensor | int = 0

    def apply(self, derivatives: Tensor) -> Tensor:
        """Return the derivatives, of any shape, clipped, and zero where they are not finite."""
        if self.clip is None and _plainly_finite(derivatives):
            return derivatives
        kept = derivatives.nan_to_num(0.0, 0.0, 0.0)
        if self.clip is None:
            return kept
        limit = torch.where(self.median > 0, self.clip * self.median, torch.inf).to(kept)
        return kept.clamp(-limit, limit)

    def observe(self, derivatives: Tensor) -> None:
        """Learn all derivatives of a step, as they were before ``apply``."""
        self.steps += 1
        if self.clip is None and _plainly_finite(derivatives):
            self._in_a_row = 0
            return
        finite = torch.isfinite(derivatives)
        if not derivatives.is_cpu or not finite.all():
            count = finite.logical_not().sum()
            self.skipped = self.skipped + count
            stays = torch.as_tensor(self._in_a_row >= self.patience, device=count.device)
            self._in_a_row = torch.where(stays, self._in_a_row, (self._in_a_row + 1) * (count > 0))
            if (derivatives.is_cpu or self.steps % self.patience == 0) and self._in_a_row >= self.patience:
                raise NonFiniteDerivativeError(
                    f"directional derivatives were not finite in {self.patience} steps in a row, {int(self.skipped)} "
                    "of them in all; lower the learning rate, or look for an operation with an infinite slope"
                )
        else:
            self._in_a_row = 0
        if self.clip is not None:
            self._follow(derivatives.abs().flatten(), finite.flatten())

    def _follow(self, sizes: Tensor, finite: Tensor) -> None:
        median = self.median.to(sizes.device)
        above = (sizes > median).to(torch.float64).mean()
        moved = median * torch.exp(max(RATE, 1 / self.steps) * (2 * above - 1))
        first = torch.where(finite, sizes, torch.nan).double().nanmedian()
        self.median = torch.where(median > 0, moved, first)

    def state_dict(self) -> dict[str, Any]:
        return {
            "median": float(self.median) if self.median > 0 else None,
            "steps": self.steps,
            "skipped": int(self.skipped),
            "in_a_row": int(self._in_a_row),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        median = torch.nan if state["median"] is None else state["median"]
        self.median = torch.tensor(median, dtype=torch.float64)
        self.steps, self.skipped, self._in_a_row = state["steps"], state["skipped"], state["in_a_row"]


def _plainly_finite(derivatives: Tensor) -> bool:
    """Say whether all are finite, where one number on the CPU tells at once; a small model's step notices more."""
    return derivatives.is_cpu and derivatives.numel() == 1 and math.isfinite(derivatives.item())
