"""Sums, means and cumulative sums."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.table import aten, transpose


def spread(u: Tensor, x: Any, dim: Any, keepdim: bool) -> Tensor:
    """Expand the cotangent of a reduction over ``dim`` (empty or None: all) to the shape of what was reduced."""
    if not keepdim and x.dim():
        dims = sorted({d % x.dim() for d in (dim or range(x.dim()))})
        for d in dims:
            u = u.unsqueeze(d)
    return u.expand(x.shape)


def _count(x: Any, dim: Any) -> int:
    return math.prod(x.shape[d] for d in (dim or range(x.dim()))) if x.dim() else 1


transpose(aten.sum.default, lambda u, x, dtype=None: u.expand(x.shape))


def _reduced(x: Tensor, dim: Any, keepdim: bool = False, dtype: Any = None) -> tuple[int, ...] | None:
    if dtype is not None and dtype is not x.dtype:
        return None
    dims = {d % max(x.dim(), 1) for d in (dim or range(x.dim()))}
    if keepdim:
        return tuple([1 if d in dims else n for d, n in enumerate(x.shape)])
    return tuple([n for d, n in enumerate(x.shape) if d not in dims])


transpose(
    aten.sum.dim_IntList,
    lambda u, x, dim, keepdim=False, dtype=None: spread(u, x, dim, keepdim),
    shape=_reduced,
)
transpose(aten.mean.default, lambda u, x, dtype=None: (u / _count(x, None)).expand(x.shape))
transpose(
    aten.mean.dim,
    lambda u, x, dim, keepdim=False, dtype=None: spread(u / _count(x, dim), x, dim, keepdim),
    shape=_reduced,
)
transpose(aten.cumsum, lambda u, x, dim, dtype=None: u.flip(dim).cumsum(dim).flip(dim) if u.dim() else u)
transpose(aten.trace, lambda u, x: u * torch.eye(*x.shape, dtype=u.dtype, device=u.device))
