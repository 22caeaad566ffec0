r"""Scatter with its reductions, and index_reduce.

Every reduction is brought to one form. To each entry e of the result belongs a group: the entries of the source that
are sent there and, with ``include_self``, the entry of the input. With sums over a group written as scatter_add:

    sum, mean   dy_e = sum of t over the group (over its size)
    prod        dy_e = y_e sum of t / x; where the group holds one zero, the tangent at the zero times the product of
                the others; where it holds two, 0
    amax, amin  dy_e = mean of t over those entries of the group that are equal to y_e
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import per_direction, shift
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.scattering import pair
from fwdgrad.dual.tensor import dispatching, dual, tangent

_NAMES = {"add": "sum", "multiply": "prod"}


@rule(torch.scatter)
def scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Tensor:
    """Write tangents to the places of the index, or add or multiply there."""
    src = value if src is None else src
    y = (
        torch.scatter(input, dim, index, src)
        if reduce is None
        else torch.scatter(input, dim, index, src, reduce=reduce)
    )
    if tangent(input) is None and tangent(src) is None:
        return y
    if not isinstance(src, Tensor) or src.dim() < index.dim():
        src = _spread(src, input, index)
    if reduce is not None:
        return dual(y, reduced(input, dim, index, src, _NAMES[reduce], True, y))
    tx, ts = pair(input, src)  # type: ignore[misc]
    return dual(y, _along(torch.Tensor.scatter, tx, dim, index, ts))


def _spread(src: Any, input: Tensor, index: Tensor) -> Tensor:
    """Return one number as a source for all places of the index."""
    if isinstance(src, Tensor):
        with dispatching():
            return src.expand(index.shape)
    return input.detach().new_full((), src).expand(index.shape)


@rule(torch.scatter_add)
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Add tangents at the places of the index."""
    y = torch.scatter_add(input, dim, index, src)
    tangents = pair(input, src)
    return y if tangents is None else dual(y, _along(torch.Tensor.scatter_add, tangents[0], dim, index, tangents[1]))


@rule(torch.scatter_reduce)
def scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Reduce within each group; see above."""
    y = torch.scatter_reduce(input, dim, index, src, reduce, include_self=include_self)
    if tangent(input) is None and tangent(src) is None:
        return y
    return dual(y, reduced(input, dim, index, src, reduce, include_self, y))


@rule(torch.index_reduce)
def index_reduce(
    input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Do scatter_reduce with one index for each slice of the source."""
    y = torch.index_reduce(input, dim, index, source, reduce, include_self=include_self)
    if tangent(input) is None and tangent(source) is None:
        return y
    shape = [1] * source.dim()
    if shape:
        shape[dim] = -1
    places = index.reshape(shape).expand(source.shape)
    return dual(y, reduced(input, dim, places, source, reduce, include_self, y))


def _along(method: Any, a: Tensor, dim: int, index: Tensor, b: Tensor) -> Tensor:
    """Apply ``a.method(dim, index, b)`` to tangents (K, ...) with an index of their primals."""
    if a.dim() == 1 or b.dim() == 1 or index.dim() == 0:
        return per_direction(lambda x, s: method(x, dim, index, s), a, b)
    return method(a, shift(dim), index.expand(a.shape[0], *index.shape), b)


def reduced(input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, include_self: bool, y: Tensor) -> Tensor:
    """Return the tangents of a scatter reduction with the result y."""
    tx, ts = pair(input, src)  # type: ignore[misc]
    x, s = input.detach(), src.detach()
    s = s[tuple(slice(n) for n in index.shape)] if s.shape != index.shape else s
    ts = ts[(slice(None), *[slice(n) for n in index.shape])] if ts.shape[1:] != index.shape else ts
    ones = torch.ones_like(s)
    kept = torch.ones_like(x)  # how often the input's own entry is in its group
    if not include_self:
        kept = kept.scatter(dim, index, torch.zeros_like(s))
    tx = tx * kept

    def total(own: Tensor, sent: Tensor) -> Tensor:
        return own.scatter_add(dim, index, sent)

    def totals(own: Tensor, sent: Tensor) -> Tensor:
        return _along(torch.Tensor.scatter_add, own, dim, index, sent)

    if reduce == "sum":
        return totals(tx, ts)
    if reduce == "mean":
        return totals(tx, ts) / total(kept, ones).clamp(min=1)
    if reduce == "prod":
        return _product(x, s, tx, ts, kept, dim, index, total, totals)
    hit_own = (x == y).to(x.dtype) * kept
    hit_sent = (s == y.gather(dim, index)).to(s.dtype)
    return totals(tx * hit_own, ts * hit_sent) / total(hit_own, hit_sent).clamp(min=1)


def _product(
    x: Tensor, s: Tensor, tx: Tensor, ts: Tensor, kept: Tensor, dim: int, index: Tensor, total: Any, totals: Any
) -> Tensor:
    zero_x, zero_s = (x == 0) & (kept != 0), s == 0
    zeros = total(zero_x.to(x.dtype), zero_s.to(s.dtype))
    safe_x, safe_s = x.masked_fill(zero_x | (kept == 0), 1), s.masked_fill(zero_s, 1)
    others = safe_x.scatter_reduce(dim, index, safe_s, "prod")  # of all that are not zero
    at_zero = totals(tx * zero_x, ts * zero_s)
    relative = totals(tx / safe_x, ts / safe_s)
    return others * torch.where(zeros == 0, relative, torch.where(zeros == 1, at_zero, torch.zeros_like(at_zero)))
