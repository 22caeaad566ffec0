"""Variances, standard deviations, covariances."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[int, ...] | None, bool, Any]:
    """Return (dims, keepdim, correction) of (unbiased), (dim, unbiased, keepdim), (dim, *, correction)."""
    given = dict(kwargs)
    names = ("unbiased",) if args and isinstance(args[0], bool) else ("dim", "unbiased", "keepdim")
    given.update(zip(names, args, strict=False))
    dim = given.get("dim")
    dims = None if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    correction = given.get("correction")
    if correction is None:
        correction = 1 if given.get("unbiased", True) else 0
    return dims or None, given.get("keepdim", False), correction


def _push(x: Tensor, t: Tensor, dims: tuple[int, ...] | None, keepdim: bool, correction: Any) -> tuple[Tensor, Tensor]:
    """Return the tangents of variance, 2 Re sum conj(x - m) t / (n - c), and of mean."""
    where = tuple(range(x.dim())) if dims is None else tuple(d % max(x.dim(), 1) for d in dims)
    where = where if x.dim() else ()
    behind = tuple(d + 1 for d in where)
    count = math.prod(x.shape[d] for d in where)
    centred = x - (x.mean(where, keepdim=True) if where else x)
    product = t * centred.conj()
    product = product.real if product.is_complex() else product
    free = count - correction
    scale = 2 / free if free > 0 else math.inf
    if not where:
        return product * scale, t.clone()
    return product.sum(behind, keepdim) * scale, t.mean(behind, keepdim)


def _root(t: Tensor, y: Tensor) -> Tensor:
    """Return tv / (2 s), and 0 where s = 0, as in reverse mode."""
    return t * torch.where(y == 0, 0, 0.5 / y)


@rule(torch.var)
def var(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Push 2 / (n - correction) sum Re conj(x - mean) t."""
    y, t = torch.var(input, *args, **kwargs), tangent(input)
    return y if t is None else dual(y, _push(input, t, *_arguments(args, kwargs))[0])


@rule(torch.std)
def std(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Push the tangent of the variance over 2 s."""
    y, t = torch.std(input, *args, **kwargs), tangent(input)
    return y if t is None else dual(y, _root(_push(input, t, *_arguments(args, kwargs))[0], y))


@rule(torch.var_mean)
def var_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Do var and mean."""
    (y, m), t = torch.var_mean(input, *args, **kwargs), tangent(input)
    if t is None:
        return y, m
    by_variance, by_mean = _push(input, t, *_arguments(args, kwargs))
    return dual(y, by_variance), dual(m, by_mean)


@rule(torch.std_mean)
def std_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Do std and mean."""
    (y, m), t = torch.std_mean(input, *args, **kwargs), tangent(input)
    if t is None:
        return y, m
    by_variance, by_mean = _push(input, t, *_arguments(args, kwargs))
    return dual(y, _root(by_variance, y)), dual(m, by_mean)


@composite(torch.cov)
def cov(
    input: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Tensor:
    """Write (x - m) diag(w) (x - m)^H over the sum of weights, less the correction; rows are variables."""
    x = input.reshape(1, -1) if input.dim() < 2 else input
    w = fweights if aweights is None else aweights if fweights is None else fweights * aweights
    total: Any = x.shape[1] if w is None else w.sum()
    mean = x.mean(1, keepdim=True) if w is None else (x * w).sum(1, keepdim=True) / total
    free = total - correction
    if w is not None and aweights is not None and correction != 0:
        free = total - correction * (w * aweights).sum() / total
    if float(free) <= 0:
        free = 0 * free
    x = x - mean
    weighted = x if w is None else x * w
    return ((x @ weighted.mH) / free).squeeze()


@composite(torch.corrcoef)
def corrcoef(input: Tensor) -> Tensor:
    """Write c_ij / sqrt(c_ii c_jj), its parts clamped to [-1, 1]."""
    c = torch.cov(input)
    if c.dim() == 0:
        return c / c
    deviation = torch.sqrt(c.diagonal().real)
    c = c / deviation.unsqueeze(1) / deviation
    if c.is_complex():
        return torch.complex(c.real.clamp(-1, 1), c.imag.clamp(-1, 1))
    return c.clamp(-1, 1)
