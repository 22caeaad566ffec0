"""New tensors made like a tangent. What is not made to hold a constant may have a tangent written to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.graph import Value
from fwdgrad.dual.tape.recording import refuse_plain_target, value_in
from fwdgrad.dual.tape.table import aten, custom
from fwdgrad.dual.tape.variable import Variable, assign, value_of, variable, zeros


@custom(aten.new_zeros.default, aten.new_empty.default)
def new(x: Variable, size: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Variable:
    """Make zeros of another shape."""
    return zeros(size, dtype or x.dtype, device or x.device)


@custom(aten.new_empty_strided.default)
def new_strided(x: Variable, size: Any, stride: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Variable:
    """Make zeros in a layout of their own."""
    return zeros(size, dtype or x.dtype, device or x.device, stride)


@custom(aten.zeros_like.default, aten.empty_like.default)
def like(x: Variable, dtype: Any = None, device: Any = None, **kwargs: Any) -> Variable:
    """Make zeros of the same shape."""
    return zeros(x.shape, dtype or x.dtype, device or x.device)


def _constant(op: Any) -> None:
    """Enter a function that makes a constant tensor like another, which may be a Variable."""

    @custom(op)
    def made(x: Variable, *args: Any, **kwargs: Any) -> Tensor:
        return op(torch.empty((), dtype=x.dtype, device=x.device).expand(x.shape), *args, **kwargs)


for _op in (aten.ones_like.default, aten.full_like.default, aten.new_ones.default, aten.new_full.default):
    _constant(_op)


@custom(aten.zero_.default)
def zero_(x: Variable) -> Variable:
    """Let a Variable stand for zero."""
    assign(x, Value(x.shape, x.dtype, x.device, is_zero=True), "torch.zero_")
    return x


@custom(aten.zero.default)
def zero(x: Variable) -> Variable:
    """Make zeros of the same shape."""
    return zeros(x.shape, x.dtype, x.device)


@custom(aten.fill.Scalar)
def fill(x: Variable, value: Any) -> Variable:
    """Make zeros; any other constant is not linear."""
    return variable(value_in(x, torch.as_tensor(value), "torch.ops.aten.fill"))


@custom(aten.copy_.default, aten.fill_.Tensor)
def copy_(x: Any, src: Any, non_blocking: bool = False) -> Any:
    """Let a Variable stand for another value, in its own shape and dtype."""
    if type(x) is not Variable:
        refuse_plain_target("torch.ops.aten.copy_")
    assign(x, value_in(x, src, "torch.ops.aten.copy_"), "torch.ops.aten.copy_")
    return x


@custom(aten.clone.default)
def clone(x: Variable, memory_format: Any = None) -> Variable:
    """Stand for the same value, which nothing can change."""
    return variable(value_of(x))
