"""Quantiles: entries of the sorted input, or points between two of them. Differentiable by the input and by q."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite


@composite(torch.quantile)
def quantile(
    input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Tensor:
    """Write the entry of rank q (n - 1); where a row holds NaN, NaN, which is sorted to the end."""
    rows, q = _rows(input, dim), _levels(input, q)
    last = rows.shape[-1] - 1
    ranks = (q.reshape(-1) * last).expand(*rows.shape[:-1], q.numel())
    ranks = ranks.masked_fill(rows.isnan().any(-1, keepdim=True), last)
    return _read(input, rows, ranks, q, dim, keepdim, interpolation)


@composite(torch.nanquantile)
def nanquantile(
    input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Tensor:
    """Write the entry of rank q (n - 1) among the n entries of a row that are not NaN."""
    rows, q = _rows(input, dim), _levels(input, q)
    count = (~rows.isnan()).sum(-1, keepdim=True)
    ranks = q.reshape(-1) * (count - 1)
    return _read(input, rows, ranks.masked_fill(count == 0, 0), q, dim, keepdim, interpolation)


def _rows(input: Tensor, dim: int | None) -> Tensor:
    if input.dim() == 0:
        return input.reshape(1)
    return input.flatten() if dim is None else input.movedim(dim, -1)


def _levels(input: Tensor, q: Any) -> Tensor:
    return q if isinstance(q, Tensor) else torch.tensor(q, dtype=input.dtype, device=input.device)


def _read(
    input: Tensor, rows: Tensor, ranks: Tensor, q: Tensor, dim: int | None, keepdim: bool, interpolation: str
) -> Tensor:
    values = torch.sort(rows, dim=-1).values
    below, above = ranks.detach().floor(), ranks.detach().ceil()
    if interpolation in ("lower", "higher", "nearest"):
        chosen = {"lower": below, "higher": above, "nearest": ranks.detach().round()}[interpolation]
        out = values.gather(-1, chosen.long())
    else:
        weight = ranks - below if interpolation == "linear" else torch.full_like(below, 0.5)
        out = torch.lerp(values.gather(-1, below.long()), values.gather(-1, above.long()), weight)
    if keepdim:
        shape = list(input.shape)
        if dim is None:
            shape = [1] * input.dim()
        elif input.dim():
            shape[dim] = 1
        out = out.movedim(-1, 0).reshape(q.numel(), *shape)
        return out if q.dim() else out.squeeze(0)
    out = out.movedim(-1, 0)
    return out if q.dim() else out.squeeze(0)
