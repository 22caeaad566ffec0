"""Stochastic gradient descent that takes an estimate as factors and never forms it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fwdgrad.tangents import PerExample, Tangent


class FactoredSGD(torch.optim.Optimizer):
    """Plain SGD, ``p -= lr (g + weight_decay p)``, for estimates ``g = sum_k alpha_k v_k`` given as tangents.

    An estimator constructed with ``optimizer=`` deposits its estimate here instead of in ``p.grad``, and ``step``
    applies it in place: for a rank-1 direction that is one ``addr_`` per weight. A dense ``p.grad``, where one exists,
    is applied as well. Parameter groups and learning-rate schedulers work as with ``torch.optim.SGD``; momentum would
    need a dense buffer and is left to it.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, positive or zero.
        weight_decay: coefficient of the L2 penalty.

    Raises:
        ValueError: if a coefficient is negative.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        if not lr >= 0:
            raise ValueError(f"lr must be zero or positive, got {lr!r}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be zero or positive, got {weight_decay!r}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._deposits: dict[nn.Parameter, list[tuple[Tangent, Tensor]]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._deposits = {}  # a copy or an unpickled optimizer starts without an estimate

    def deposit(self, param: nn.Parameter, tangent: Tangent, alpha: Tensor) -> None:
        """Add ``sum_k alpha_k v_k`` to the estimate that the next step applies to ``param``."""
        self._deposits.setdefault(param, []).append((tangent, alpha))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._deposits.clear()
        # Nothing to forget is the usual case here, and it should cost nothing.
        if any(param.grad is not None for group in self.param_groups for param in group["params"]):
            super().zero_grad(set_to_none)

    def grad_norm(self) -> Tensor:
        """Return the Euclidean norm of the whole estimate, deposits and ``.grad`` together."""
        squares = []
        for param in (param for group in self.param_groups for param in group["params"]):
            deposits = self._deposits.get(param, [])
            if len(deposits) == 1 and param.grad is None and not isinstance(deposits[0][0], PerExample):
                tangent, alpha = deposits[0]
                gram = tangent.gram()
                # Directions that cancel leave a square that rounding may push below zero.
                squares.append((alpha.to(gram.dtype) @ gram @ alpha.to(gram.dtype)).clamp_min(0))
            elif deposits or param.grad is not None:
                squares.append(self._dense(param).square().sum())
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())

    def scale_grad(self, factor: Tensor) -> None:
        """Multiply the whole estimate by a scalar tensor."""
        for param, deposits in self._deposits.items():
            self._deposits[param] = [(tangent, alpha * factor) for tangent, alpha in deposits]
        for param in (param for group in self.param_groups for param in group["params"]):
            if param.grad is not None:
                param.grad.mul_(factor)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for hook in self._optimizer_step_pre_hooks.values():
            hook(self, (), {})
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            alpha, scaled = None, torch.zeros(0)
            for param in group["params"]:
                deposits = self._deposits.get(param, [])
                if not deposits and param.grad is None:
                    continue
                if group["weight_decay"]:
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                for tangent, coefficients in deposits:
                    if coefficients is not alpha:  # an estimator gives all its parameters the same ones
                        alpha, scaled = coefficients, coefficients * -group["lr"]
                    tangent.add_to_(param, scaled)
                if param.grad is not None:
                    param.add_(param.grad, alpha=-group["lr"])
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})
        return loss

    # PyTorch wraps the step of every optimizer in a record for its profiler, which takes longer than the update of a
    # small model, unless it finds this mark. The hooks that users register are called above.
    step.hooked = True  # type: ignore[attr-defined]

    def _dense(self, param: nn.Parameter) -> Tensor:
        total = torch.zeros_like(param) if param.grad is None else param.grad.clone()
        for tangent, alpha in self._deposits.get(param, []):
            tangent.add_to_(total, alpha)
        return total
