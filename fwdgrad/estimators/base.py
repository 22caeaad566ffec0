"""The interface of an estimator: one call instead of ``loss.backward()``."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fwdgrad.functional import Closure
from fwdgrad.optim import FactoredSGD
from fwdgrad.tangents import PerExample, Tangent


@dataclass(frozen=True)
class StepRecord:
    """What the last call of an estimator saw."""

    value: Tensor
    """The detached scalar loss, or the per-example losses (B,)."""
    directional_derivatives: Tensor | None = None
    """Of the loss in each direction, shape (K,); None for a method without directions."""
    per_example_derivatives: Tensor | None = None
    """Of each example's loss in each direction, shape (K, B), where the closure returned per-example losses."""
    skipped: Tensor | int = 0
    """How many derivatives were not finite, and left out, in this and all earlier steps."""


class Estimator(Protocol):
    """A gradient estimator: returns the detached loss and accumulates into ``p.grad`` as ``backward()`` would."""

    last: StepRecord | None

    def __call__(self, model: nn.Module, closure: Closure) -> Tensor:
        """Estimate the gradient of ``closure(model)`` with respect to the model's trainable parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be restored for the run to go on as if it had never stopped."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


def deposit(param: nn.Parameter, tangent: Tangent, alpha: Tensor, optimizer: FactoredSGD | None) -> None:
    """Accumulate ``sum_k alpha_k v_k``: as factors into the optimizer if there is one, else into ``param.grad``.

    A parameter that took no part in the loss is left alone, as ``backward()`` would.
    """
    if isinstance(tangent, PerExample) and not tangent.drawn:
        return
    if optimizer is not None:
        optimizer.deposit(param, tangent, alpha)
        return
    if param.grad is None:
        param.grad = torch.zeros_like(param, requires_grad=False)
    tangent.add_to_(param.grad, alpha)


def check_positive_integer(name: str, value: object) -> int:
    """Return the value, or raise ValueError unless it is an integer of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)
