"""The interface of an engine: how directional derivatives are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from fwdgrad.tangents import Tangent

Function: TypeAlias = Callable[[Mapping[str, Tensor]], tuple[Tensor, Any]]


class Evaluation(NamedTuple):
    """What one evaluation of a function with K tangents gives."""

    value: Tensor
    """The function's value: a scalar loss, or per-example losses of shape (B,)."""
    derivatives: Tensor
    """The directional derivatives of the value, of shape (K,) or (K, B), at least float32."""
    aux: Any
    """The second thing the function returned, without tangents."""


class Engine(Protocol):
    """Computes ``d/de f(params + e v_k)`` at ``e = 0`` for K tangents ``v_k``."""

    def __call__(self, fn: Function, params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]) -> Evaluation:
        """Evaluate ``fn(params) -> (value, aux)`` and the derivatives of its value; ``aux`` is a pytree of tensors."""
