"""Directions that start inside a computation: tangents given to intermediate values instead of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fwdgrad.dual.api import plain
from fwdgrad.dual.running import evaluation
from fwdgrad.dual.tensor import dual, tangent


def perturbed(fn: Callable[[], tuple[Tensor, Any]], num_directions: int, *, fallback: str = "warn") -> Any:
    """Evaluate ``fn() -> (value, aux)``, in which ``perturb`` starts K directions, and differentiate its value.

    Returns:
        ``(value, derivatives, aux)``, plain; derivatives of shape (K, *value.shape), zero where nothing was perturbed.
    """
    with evaluation(num_directions, fallback):
        value, aux = fn()
        with torch._C.DisableTorchFunctionSubclass():
            derivatives = tangent(value)
        value = plain(value)
        if derivatives is None:
            derivatives = value.new_zeros((num_directions, *value.shape))
        return value, derivatives, tree_map(plain, aux)


def perturb(x: Tensor, tangents: Tensor) -> Tensor:
    """Return x with ``tangents``, of shape (K, *x.shape), added to those it has; only inside ``perturbed``."""
    with torch._C.DisableTorchFunctionSubclass():
        if tuple(tangents.shape[1:]) != tuple(x.shape):
            raise ValueError(
                f"tangents of a value of shape {tuple(x.shape)} must have shape (K, *shape), got "
                f"{tuple(tangents.shape)}"
            )
        earlier = tangent(x)
        return dual(x.detach().clone(), tangents.clone() if earlier is None else earlier + tangents)
