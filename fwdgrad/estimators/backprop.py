"""The exact gradient by reverse mode: the rival every other method is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fwdgrad.estimators.base import StepRecord
from fwdgrad.functional import Closure, check_loss, check_trainable


class Backprop:
    """Compute the exact gradient with PyTorch's autograd; the only estimator that may.

    Args:
        compile: run the forward and the backward pass through ``torch.compile(fullgraph=True)``.

    Raises, when called:
        ValueError: if the model has no trainable parameter, or the loss has more than one dimension.
    """

    def __init__(self, compile: bool = False) -> None:
        options: dict[str, Any] = {"fallback_random": True}
        self._losses = torch.compile(_losses, fullgraph=True, options=options) if compile else _losses
        self.last: StepRecord | None = None

    def __call__(self, model: nn.Module, closure: Closure) -> Tensor:
        """Return the detached loss ``closure(model)`` and accumulate its gradient into ``p.grad``."""
        check_trainable(model)
        losses = self._losses(model, closure)
        loss = losses.mean()
        loss.backward()
        self.last = StepRecord(losses.detach())
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _losses(model: nn.Module, closure: Closure) -> Tensor:
    return check_loss(closure(model))
