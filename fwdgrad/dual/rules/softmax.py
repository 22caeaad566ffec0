"""The softmax family: with p = softmax(x), d softmax = p (t - p.t), d log_softmax = t - p.t, d logsumexp = p.t."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.forms import shift
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent


def _softmax(y: Tensor, t: Tensor | None, dim: int) -> Tensor:
    if t is None:
        return y
    if y.dim() == 0:
        return dual(y, torch.zeros_like(t))
    p = t * y
    return dual(y, torch.addcmul(p, p.sum(shift(dim), keepdim=True), y, value=-1))


def _log_softmax(y: Tensor, t: Tensor | None, dim: int) -> Tensor:
    if t is None:
        return y
    if y.dim() == 0:
        return dual(y, torch.zeros_like(t))
    return dual(y, t - (t * torch.exp(y)).sum(shift(dim), keepdim=True))


@rule(torch.softmax)
def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Push p (t - p.t)."""
    return _softmax(torch.softmax(input, dim, dtype=dtype), tangent(input), dim)


@rule(torch.log_softmax)
def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Push t - p.t."""
    return _log_softmax(torch.log_softmax(input, dim, dtype=dtype), tangent(input), dim)


@rule(F.softmax)
def functional_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """Do softmax, along PyTorch's default dimension if none is given."""
    dim = _default(input) if dim is None else dim
    return softmax(input, dim, dtype)


@rule(F.log_softmax)
def functional_log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """Do log_softmax, along PyTorch's default dimension if none is given."""
    dim = _default(input) if dim is None else dim
    return log_softmax(input, dim, dtype)


def _default(x: Tensor) -> int:
    return 0 if x.dim() in (0, 1, 3) else 1


@rule(torch.logsumexp)
def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """Push p.t, with p = exp(x - y)."""
    y = torch.logsumexp(input, dim, keepdim)
    t = tangent(input)
    if t is None:
        return y
    if input.dim() == 0:
        return dual(y, t.clone())
    kept = y if keepdim else torch.logsumexp(input, dim, True)
    p = torch.exp(input - torch.where(torch.isinf(kept), torch.zeros_like(kept), kept))
    dims = [shift(d) for d in ((dim,) if isinstance(dim, int) else dim)]
    return dual(y, (t * p).sum(dims, keepdim))
