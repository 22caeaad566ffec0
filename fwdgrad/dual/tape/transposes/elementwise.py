"""Sums, products, selections by a mask, and multiplication by the slope of an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.table import aten, broadcast, conj, transpose

transpose(aten.neg, lambda u, x: -u, shape=broadcast)
transpose(
    aten.add,
    lambda u, x, y, alpha=1: u,
    lambda u, x, y, alpha=1: u if alpha == 1 else u * conj(alpha),
    terms=((0,), (1,)),
    shape=broadcast,
)
transpose(
    aten.sub, lambda u, x, y, alpha=1: u, lambda u, x, y, alpha=1: u * -conj(alpha), terms=((0,), (1,)), shape=broadcast
)
transpose(
    aten.rsub,
    lambda u, x, y, alpha=1: u * -conj(alpha),
    lambda u, x, y, alpha=1: u,
    terms=((0,), (1,)),
    shape=broadcast,
)
transpose(aten.mul, lambda u, x, y: u * conj(y), lambda u, x, y: u * conj(x), shape=broadcast)
transpose(aten.div, lambda u, x, y: u / conj(y), shape=broadcast)
transpose(
    aten.addcmul,
    lambda u, x, y, z, value=1: u,
    lambda u, x, y, z, value=1: _scaled(u * conj(z), value),
    lambda u, x, y, z, value=1: _scaled(u * conj(y), value),
    terms=((0,), (1, 2)),
    shape=broadcast,
)
transpose(
    aten.addcdiv,
    lambda u, x, y, z, value=1: u,
    lambda u, x, y, z, value=1: _scaled(u / conj(z), value),
    terms=((0,), (1,)),
    shape=broadcast,
)
transpose(
    aten.lerp,
    lambda u, x, y, w: u * conj(1 - w),
    lambda u, x, y, w: u * conj(w),
    terms=((0,), (1,)),
    shape=broadcast,
)


def _scaled(u: Tensor, factor: Any) -> Tensor:
    return u if factor == 1 else u * conj(factor)


# Where a condition holds, and zero elsewhere.
transpose(
    aten.where,
    None,
    lambda u, condition, x, y: torch.where(condition, u, 0),
    lambda u, condition, x, y: torch.where(condition, 0, u),
    terms=((1,), (2,)),
)
transpose(aten.masked_fill, lambda u, x, mask, value: u.masked_fill(mask, 0), terms=((0,), (2,)))


def _symmetric(op: Any) -> None:
    """Enter an operation that multiplies its first argument, place by place, by something real."""
    transpose(op, lambda u, x, *rest, **kwargs: op(u, *rest, **kwargs), shape=broadcast)


for _name in ("sigmoid", "tanh", "threshold", "hardtanh", "softplus", "hardswish", "hardsigmoid", "leaky_relu"):
    _symmetric(getattr(aten, f"{_name}_backward"))
for _name in ("silu", "mish", "gelu"):
    _symmetric(getattr(aten, f"{_name}_backward"))

# Copies, casts and other names of the same: shape and dtype are fitted afterwards.
for _op in (aten.clone, aten.alias, aten.alias_copy, aten.detach, aten._to_copy, aten.expand, aten.lift_fresh):
    transpose(_op, lambda u, *args, **kwargs: u)
