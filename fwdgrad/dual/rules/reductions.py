"""Sums, means and products over dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite, linear, shift, shifts
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent


def _over(reduce: Any) -> Any:
    def batched(t: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
        if dim is None or (not isinstance(dim, int) and len(dim) == 0):
            dim = tuple(range(t.dim() - 1))
        return reduce(t, shifts(dim), keepdim, **kwargs)

    return batched


linear(torch.sum, batched=_over(torch.sum))
linear(torch.mean, batched=_over(torch.mean))


@composite(torch.nansum)
def nansum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """Write the sum with zeros in the place of NaN."""
    filled = input.masked_fill(input.isnan(), 0)
    return filled.sum(dtype=dtype) if dim is None and not keepdim else filled.sum(dim, keepdim, dtype=dtype)


@composite(torch.nanmean)
def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """Write the sum of what is not NaN over the number of it."""
    return torch.nansum(input, dim, keepdim, dtype=dtype) / (~input.isnan()).sum(dim, keepdim)


@rule(torch.prod)
def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """Push sum_i t_i times the product of all x_j but x_i, which is taken from the left and from the right of i.

    No factor is divided by, so that zeros need no case of their own.
    """
    t = tangent(input)
    y = torch.prod(input, dtype=dtype) if dim is None else torch.prod(input, dim, keepdim, dtype=dtype)
    if t is None:
        return y
    x, t = input.to(y.dtype), t.to(y.dtype)
    if input.dim() == 0:
        return dual(y, t.clone())
    if dim is None:
        return dual(y, (t.flatten(1) * _others(x.flatten(), 0)).sum(1).view(t.shape[0], *y.shape))
    return dual(y, (t * _others(x, dim)).sum(shift(dim), keepdim))


def _others(x: Tensor, dim: int) -> Tensor:
    """Return for each entry the product of the other ones along a dimension."""
    if x.shape[dim] < 2:
        return torch.ones_like(x)
    one = torch.ones_like(x.narrow(dim, 0, 1))
    left = torch.cat((one, x.narrow(dim, 0, x.shape[dim] - 1)), dim).cumprod(dim)
    right = torch.cat((one, x.flip(dim).narrow(dim, 0, x.shape[dim] - 1)), dim).cumprod(dim).flip(dim)
    return left * right
