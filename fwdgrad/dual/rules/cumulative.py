"""Running sums, products and extrema."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import linear, shift
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.indexing import gathered
from fwdgrad.dual.tape.linear_map import linear_map
from fwdgrad.dual.tensor import dual, tangent

linear(torch.cumsum, batched=lambda t, dim, dtype=None: torch.cumsum(t, shift(dim), dtype=dtype))


@rule(torch.cumprod)
def cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Push y_i sum_{j <= i} t_j / x_j in front of the first zero, at z; from there on t_z times the other factors."""
    y, t = torch.cumprod(input, dim, dtype=dtype), tangent(input)
    if t is None:
        return y
    if input.dim() == 0:
        return dual(y, t.clone())
    x = input.to(y.dtype)
    t = t.to(y.dtype)
    zero = x == 0
    seen = torch.cumsum(zero, dim)
    first = zero & (seen == 1)
    before = y * torch.cumsum(t / x.masked_fill(zero, 1), shift(dim))
    behind = torch.cumprod(x.masked_fill(first, 1), dim) * torch.cumsum(t * first, shift(dim))
    return dual(y, torch.where(seen == 0, before, behind))


@rule(torch.logcumsumexp)
def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    r"""Push sum_{j <= i} t_j exp(x_j - y_i), by running log-sum-exps of its positive and its negative terms.

    For complex numbers exp(i Im x_j) joins t_j, and real and imaginary parts are summed by themselves.
    """
    y, t = torch.logcumsumexp(input, dim), tangent(input)
    if t is None:
        return y
    if input.dim() == 0:
        return dual(y, t.clone())
    if not input.is_complex():
        return dual(y, _weighted(t, input, y, shift(dim)))
    w = t * torch.polar(torch.ones_like(input.real), input.imag)
    size = y.real
    pushed = torch.complex(*[_weighted(part, input.real, size, shift(dim)) for part in (w.real, w.imag)])
    return dual(y, pushed * torch.polar(torch.ones_like(size), -y.imag))


def _weighted(t: Tensor, x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Return sum_{j <= i} t_j exp(x_j - y_i) for real numbers."""
    reference = y.masked_fill(y == -torch.inf, 0)

    def pull(u: Tensor, x: Tensor, reference: Tensor) -> Tensor:  # the same sum from the other end
        return _weighted_sum(u.flip(dim), -reference.unsqueeze(0).flip(dim), -x.unsqueeze(0).flip(dim), dim).flip(dim)

    return linear_map(lambda t, x, reference: _weighted_sum(t, x, reference, dim), pull, t, y, x, reference)


def _weighted_sum(t: Tensor, x: Tensor, reference: Tensor, dim: int) -> Tensor:
    terms = [torch.logcumsumexp(x + torch.log(part), dim) for part in (t.clamp(min=0), (-t).clamp(min=0))]
    return torch.exp(terms[0] - reference) - torch.exp(terms[1] - reference)


def _running(name: str) -> None:
    function = getattr(torch, name)

    @rule(function)
    def extremum(input: Tensor, dim: int) -> Any:
        """Push the tangent at the place where the running extremum is taken."""
        out = function(input, dim)
        t = tangent(input)
        if t is None:
            return out
        return getattr(torch.return_types, name)((dual(out.values, gathered(t, dim, out.indices)), out.indices))


_running("cummax")
_running("cummin")


@rule(torch.frexp)
def frexp(input: Tensor) -> Any:
    """Push t 2^-e for the mantissa x 2^-e; the exponent has no derivative."""
    out, t = torch.frexp(input), tangent(input)
    if t is None:
        return out
    return torch.return_types.frexp((dual(out.mantissa, t * torch.exp2(-out.exponent.to(t.dtype))), out.exponent))
