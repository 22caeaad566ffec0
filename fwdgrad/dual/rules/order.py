"""What depends on the order of the entries: extrema, medians, sorting. The tangent is that of the entries chosen.

Where one of several equal entries is returned with its index, its own tangent is meant; where a value alone is
returned, the mean over all entries equal to it. Both are the conventions of PyTorch's reverse mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.indexing import gathered
from fwdgrad.dual.tensor import RULES, DualError, dual, tangent


def _chosen(input: Tensor, out: Any, kind: Any, dim: int, keepdim: bool = True) -> Any:
    """Attach to values the tangents of the entries that the indices name."""
    t = tangent(input)
    if t is None:
        return out
    if keepdim or input.dim() == 0:
        pushed = gathered(t, dim, out.indices)
    else:
        d = dim if dim >= 0 else dim + input.dim()
        pushed = gathered(t, d, out.indices.unsqueeze(d)).squeeze(d + 1)
    return kind((dual(out.values, pushed), out.indices))


def _mean_over_ties(input: Tensor, y: Tensor, dims: Any = None, keepdim: bool = False) -> Tensor:
    """Attach to y the mean of the tangents of those entries, over the dimensions, that are equal to it."""
    t = tangent(input)
    if t is None:
        return y
    if input.dim() == 0:
        return dual(y, t.clone())
    dims = (dims,) if isinstance(dims, int) else tuple(dims or range(input.dim()))
    where = {d % input.dim() for d in dims}
    kept = y.reshape([1 if d in where else n for d, n in enumerate(input.shape)])
    ties = (input == kept) | (input.isnan() & kept.isnan())
    behind = [d + 1 for d in where]
    count = ties.sum(tuple(where), keepdim).clamp(min=1)
    return dual(y, (t * ties).sum(behind, keepdim) / count)


def _extremum(name: str, elementwise: Any) -> None:
    function = getattr(torch, name)
    kind = getattr(torch.return_types, name)

    @rule(function)
    def extremum(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Serve the largest of all entries, along a dimension, or of two tensors."""
        other = kwargs.get("other", args[0] if args else None)
        if isinstance(other, Tensor):
            return RULES[elementwise](input, other)
        out = function(input, *args, **kwargs)
        if isinstance(out, Tensor):
            return _mean_over_ties(input, out)
        given = {**dict(zip(("dim", "keepdim"), args, strict=False)), **kwargs}
        return _chosen(input, out, kind, given["dim"], given.get("keepdim", False))


_extremum("max", torch.maximum)
_extremum("min", torch.minimum)


@rule(torch.amax)
def amax(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Push the mean over ties."""
    return _mean_over_ties(input, torch.amax(input, dim, keepdim), dim, keepdim)


@rule(torch.amin)
def amin(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Push the mean over ties."""
    return _mean_over_ties(input, torch.amin(input, dim, keepdim), dim, keepdim)


@rule(torch.aminmax)
def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    """Do amin and amax."""
    dims = () if dim is None else dim
    low, high = torch.aminmax(input, dim=dim, keepdim=keepdim)
    return torch.return_types.aminmax(
        (_mean_over_ties(input, low, dims, keepdim), _mean_over_ties(input, high, dims, keepdim))
    )


def _median(name: str) -> None:
    function = getattr(torch, name)
    kind = getattr(torch.return_types, name)

    @rule(function)
    def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        """Serve the median of all entries, or along a dimension."""
        if dim is None:
            return _mean_over_ties(input, function(input))
        return _chosen(input, function(input, dim, keepdim), kind, dim, keepdim)


_median("median")
_median("nanmedian")


@rule(torch.mode)
def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """Push the tangent of the entry that the index names."""
    return _chosen(input, torch.mode(input, dim, keepdim), torch.return_types.mode, dim, keepdim)


@rule(torch.kthvalue)
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """Push the tangent of the entry that the index names."""
    return _chosen(input, torch.kthvalue(input, k, dim, keepdim), torch.return_types.kthvalue, dim, keepdim)


@rule(torch.sort)
def sort(input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    """Sort the tangents as the values."""
    out = torch.sort(input, dim=dim, descending=descending, stable=stable)
    return _chosen(input, out, torch.return_types.sort, dim)


@rule(torch.topk)
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """Push the tangents of the largest entries."""
    return _chosen(input, torch.topk(input, k, dim, largest, sorted), torch.return_types.topk, dim)


@composite(torch.msort)
def msort(input: Tensor) -> Tensor:
    """Write sorting along the first dimension."""
    return torch.sort(input, dim=0).values


def _without_derivative(name: str) -> None:
    for function in (getattr(torch, name), getattr(torch.functional, name), getattr(Tensor, name)):

        def refuse(input: Tensor, *args: Any, function: Any = function, **kwargs: Any) -> Any:
            if tangent(input) is not None:
                raise DualError(f"{name} has no derivative, in reverse mode neither; call it on x.detach()")
            return function(input.detach(), *args, **kwargs)

        rule(function, exact=True)(refuse)


_without_derivative("unique")
_without_derivative("unique_consecutive")
