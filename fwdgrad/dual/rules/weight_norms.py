"""Weights written as length times direction."""

from __future__ import annotations

import torch
from torch import Tensor

from fwdgrad.dual.folding import total
from fwdgrad.dual.forms import align
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent


def _directions(v: Tensor, dim: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return v / |v|, |v| and the dimensions of v (counted from the right) that the norm is over."""
    dims = tuple(i - v.dim() for i in range(v.dim()) if dim == -1 or i != dim)
    norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    return v / norm, norm, dims


@rule(torch._weight_norm)
def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """With u = v / |v|: w = g u, tangent ``tg u + (g / |v|) (tv - u (u.tv))``."""
    w = torch._weight_norm(v.detach(), g.detach(), dim)
    tv, tg = tangent(v), tangent(g)
    if tv is None and tg is None:
        return w
    u, norm, dims = _directions(v.detach(), dim)
    t = None
    if tv is not None:
        t = torch.addcmul(tv, u, (tv * u).sum(dims, keepdim=True), value=-1) * (g / norm)
    return dual(w, total(t, None if tg is None else align(tg, w.dim()) * u))


@rule(torch._weight_norm_interface)
def weight_norm_interface(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """As ``weight_norm``, with the norms besides."""
    return weight_norm(v, g, dim), norm_except_dim(v, 2, dim)


@rule(torch.norm_except_dim)
def norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    """Push u.tv, for the 2-norm."""
    y = torch.norm_except_dim(v, pow, dim)
    t = tangent(v)
    if t is None:
        return y
    if pow != 2:
        raise NotImplementedError(f"torch.norm_except_dim: pow must be 2, got {pow}")
    u, _, dims = _directions(v.detach(), dim)
    return dual(y, (t * u).sum(dims, keepdim=True).view(t.shape[0], *y.shape))
