"""Casts and moves to devices: the tangent goes along. A cast to integers has no derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fwdgrad.dual.registry import register
from fwdgrad.dual.tensor import dual, tangent, view_of


def _casting(function: Callable[..., Any]) -> None:
    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = function(input, *args, **kwargs)
        t = tangent(input)
        if t is None or y is input or not isinstance(y, Tensor) or not (y.is_floating_point() or y.is_complex()):
            return y
        if not (input.is_complex() and not y.is_complex()):
            pushed = t.to(y.device, y.dtype)
        else:
            pushed = t.real.clone().to(y.device, y.dtype)
        return view_of(input, y, pushed) if y._is_view() else dual(y, pushed.clone() if pushed is t else pushed)

    register(handler, function)


for _name in (
    "to",
    "type",
    "type_as",
    "float",
    "double",
    "half",
    "bfloat16",
    "cfloat",
    "cdouble",
    "chalf",
    "cpu",
    "cuda",
    "xpu",
):
    if hasattr(Tensor, _name):
        _casting(getattr(Tensor, _name))
