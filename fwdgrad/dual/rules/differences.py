"""Differences and integrals along a dimension, and what is built of norms: distances, renormalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.fallback import make_fallback
from fwdgrad.dual.forms import composite, per_direction
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.scatter_reductions import reduced
from fwdgrad.dual.tensor import dual, tangent


@composite(torch.diff)
def diff(input: Tensor, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Tensor:
    """Write x[i + 1] - x[i], n times."""
    if n == 0:
        return input.view_as(input)
    parts = [x for x in (prepend, input, append) if x is not None]
    x = torch.cat(parts, dim) if len(parts) > 1 else input
    for _ in range(min(n, x.shape[dim])):
        length = x.shape[dim] - 1
        x = x.narrow(dim, 1, length) - x.narrow(dim, 0, length)
    return x


def _areas(y: Tensor, x: Tensor | None, dx: Any, dim: int) -> Tensor:
    """Return twice the area under each interval."""
    length = max(y.shape[dim] - 1, 0)
    sums = y.narrow(dim, 1, length) + y.narrow(dim, 0, length) if y.shape[dim] else y
    if x is None:
        return sums * (1 if dx is None else dx)
    if x.dim() == 1 and y.dim() > 1:
        x = x.reshape([-1 if d == dim % y.dim() else 1 for d in range(y.dim())])
    elif x.dim() < y.dim():
        x = x.reshape((1,) * (y.dim() - x.dim()) + x.shape)
    return sums * torch.diff(x, dim=dim)


@composite(torch.trapezoid, torch.trapz)
def trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """Write the sum of the areas under the intervals."""
    return _areas(y, x, dx, dim).sum(dim) / 2


@composite(torch.cumulative_trapezoid)
def cumulative_trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """Write the running sum of the areas under the intervals."""
    return _areas(y, x, dx, dim).cumsum(dim) / 2


_with_coordinates = make_fallback(torch.gradient, "torch.gradient")


@rule(torch.gradient)
def gradient(input: Tensor, *, spacing: Any = 1, **kwargs: Any) -> Any:
    """Take the differences of the tangents. In the coordinates, by which it divides, PyTorch's formula is used."""
    listed = spacing if isinstance(spacing, list | tuple) else (spacing,)
    if any(tangent(s) is not None for s in listed):
        return _with_coordinates(input, spacing=spacing, **kwargs)
    out, t = torch.gradient(input, spacing=spacing, **kwargs), tangent(input)
    if t is None:
        return out
    pushed = per_direction(lambda tk: torch.gradient(tk, spacing=spacing, **kwargs), t)
    return type(out)([dual(o, p) for o, p in zip(out, pushed, strict=True)])


@composite(torch.dist)
def dist(input: Tensor, other: Tensor, p: Any = 2) -> Tensor:
    """Write |x - y|_p."""
    return torch.linalg.vector_norm(input - other, p)


@composite(torch.renorm)
def renorm(input: Tensor, p: Any, dim: int, maxnorm: Any) -> Tensor:
    """Write the slices with a norm above maxnorm as scaled down to it (with PyTorch's 1e-7 in the quotient)."""
    others = [d for d in range(input.dim()) if d != dim % input.dim()]
    norms = torch.linalg.vector_norm(input, p, others, keepdim=True)
    return input * torch.where(norms > maxnorm, maxnorm / (norms + 1e-7), 1.0)


@rule(torch.segment_reduce)
def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    dim: int = 0,
    unsafe: bool = False,
    initial: Any = None,
) -> Tensor:
    """Do a scatter reduction with the number of its segment as the index of each entry (``axis`` is ``dim`` here)."""
    y = torch.segment_reduce(
        data, reduce, lengths=lengths, indices=indices, offsets=offsets, axis=dim, unsafe=unsafe, initial=initial
    )
    if tangent(data) is None:
        return y
    if lengths is None:
        assert offsets is not None
        lengths = offsets.diff(dim=-1)
    segments, size = lengths.shape[-1], data.shape[dim]
    ends = lengths.cumsum(-1)
    places = torch.searchsorted(
        ends, torch.arange(size, device=data.device).expand(*lengths.shape[:-1], size), right=True
    )
    places = places.reshape(*places.shape, *(1,) * (data.dim() - places.dim())).expand(data.shape)
    padding = torch.zeros_like(y.narrow(dim, 0, 1)) if segments else y.new_zeros(())
    padded = torch.cat((y, padding), dim)  # what lies behind the last segment
    name = {"max": "amax", "min": "amin"}.get(reduce, reduce)
    t = reduced(torch.zeros_like(padded), dim, places, data, name, False, padded).narrow(dim + 1, 0, segments)
    return dual(y, t * initial if reduce == "prod" and initial is not None else t)
