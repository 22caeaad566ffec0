"""Writing to chosen places: index_add and its kind, scatter, masked_fill, put. Linear in both tensors.

The reductions of scatter that are not linear ("prod", "amax", ...) are in ``scatter_reductions``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, attach, per_direction, shift
from fwdgrad.dual.inplace import own_or_none
from fwdgrad.dual.registry import register, rule
from fwdgrad.dual.tensor import DualError, dual, tangent


def pair(input: Tensor, source: Any) -> tuple[Tensor, Tensor] | None:
    """Return the tangents of two arguments, with zeros where only one has them, or None if neither has."""
    tx, ts = tangent(input), tangent(source)
    if tx is None and ts is None:
        return None
    count = (tx if ts is None else ts).shape[0]  # type: ignore[union-attr]
    return _or_zeros(tx, input, count), _or_zeros(ts, source, count)


def _or_zeros(t: Tensor | None, x: Any, count: int) -> Tensor:
    if t is not None:
        return t
    x = torch.as_tensor(x)
    return x.detach().new_zeros(()).expand(count, *x.shape)


def _writing(function: Callable[..., Tensor]) -> None:
    """Enter ``f(x, dim, index, source)``, linear in x and source."""

    def handler(input: Tensor, dim: int, index: Tensor, source: Tensor, **kwargs: Any) -> Tensor:
        y = function(input, dim, index, source, **kwargs)
        tangents = pair(input, source)
        if tangents is None:
            return y
        tx, ts = tangents
        if input.dim() == 0 or source.dim() == 0 or index.dim() == 0:
            return dual(y, per_direction(lambda a, b: function(a, dim, index, b, **kwargs), tx, ts))
        return dual(y, function(tx, shift(dim), index, ts, **kwargs))

    register(handler, function)


_writing(torch.index_add)
_writing(torch.index_copy)


@rule(torch.index_fill)
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """Fill the same slices of the tangents with the tangent of the value, or zero."""
    y = torch.index_fill(input, dim, index, value)
    tangents = pair(input, value)
    if tangents is None:
        return y
    if tangent(value) is None:
        tx = tangents[0]
        if input.dim() == 0:
            return dual(y, per_direction(lambda a: a.index_fill(dim, index, 0), tx))
        return dual(y, tx.index_fill(shift(dim), index, 0))
    return dual(y, per_direction(lambda a, v: torch.index_fill(a, dim, index, v), *tangents))


@rule(torch.index_put)
def index_put(input: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    """Put the tangents of the values to the same places."""
    y = torch.index_put(input, indices, values, accumulate)
    tangents = pair(input, values)
    if tangents is None:
        return y
    return dual(y, per_direction(lambda a, v: torch.index_put(a, indices, v, accumulate), *tangents))


@rule(torch._unsafe_masked_index_put_accumulate)
def unsafe_masked_index_put_accumulate(input: Tensor, mask: Tensor, indices: Any, values: Tensor) -> Tensor:
    """Do index_put with accumulation where the mask holds."""
    function = torch._unsafe_masked_index_put_accumulate
    y = function(input, mask, indices, values)
    tangents = pair(input, values)
    return y if tangents is None else dual(y, per_direction(lambda a, v: function(a, mask, indices, v), *tangents))


@rule(torch._unsafe_masked_index)
def unsafe_masked_index(input: Tensor, mask: Tensor, indices: Any, fill: Any) -> Tensor:
    """Read where the mask holds; the fill is constant."""
    function = torch._unsafe_masked_index
    y, t = function(input, mask, indices, fill), tangent(input)
    return y if t is None else dual(y, per_direction(lambda a: function(a, mask, indices, 0), t))


@rule(torch.put)
def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Put the tangents of the source to the same places of the flattened input."""
    y = torch.put(input, index, source, accumulate)
    tangents = pair(input, source)
    return y if tangents is None else dual(y, per_direction(lambda a, s: a.put(index, s, accumulate), *tangents))


@rule(torch.masked_fill)
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """Push t where the mask does not hold, and the tangent of the value where it does."""
    y = torch.masked_fill(input, mask, value)
    tx, tv = tangent(input), tangent(value)
    if tx is None and tv is None:
        return y
    t = None if tx is None else align(tx, y.dim()).masked_fill(mask, 0)
    if tv is not None:
        filled = align(tv, y.dim()) * mask
        t = filled if t is None else t + filled
    return attach(y, t)


@rule(torch.masked_scatter)
def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Write the first entries of the source's tangents, in order, where the mask holds."""
    y = torch.masked_scatter(input, mask, source)
    tangents = pair(input, source)
    if tangents is None:
        return y
    return dual(y, per_direction(lambda a, s: torch.masked_scatter(a, mask, s), *tangents))


@rule(torch.fill)
def fill(input: Tensor, value: Any) -> Tensor:
    """Spread the tangent of the value."""
    y, t = torch.fill(input, value), tangent(value)
    return attach(y, None if t is None else align(t, y.dim()).expand(t.shape[0], *y.shape).clone())


@rule(Tensor.fill_diagonal_)
def fill_diagonal_(input: Tensor, fill_value: Any, wrap: bool = False) -> Tensor:
    """Set the tangents of the diagonal to zero."""
    target = own_or_none(input, "Tensor.fill_diagonal_", False)
    if target is not None:
        for piece in target.unbind(0):
            piece.fill_diagonal_(0, wrap)
    return Tensor.fill_diagonal_(input, fill_value, wrap)


@rule(torch.bincount)
def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """Add up the tangents of the weights; reverse mode has no derivative of it."""
    y, t = torch.bincount(input, weights, minlength), tangent(weights)
    return y if t is None else dual(y, t.new_zeros(t.shape[0], *y.shape).index_add_(1, input, t))


@rule(torch.histogram)
def histogram(input: Tensor, *args: Any, weight: Tensor | None = None, **kwargs: Any) -> Any:
    """Count; piecewise constant in the input. In the weights it is linear, which has no rule."""
    if tangent(weight) is not None:
        raise DualError("torch.histogram: no derivative by its weights; use torch.bincount of torch.bucketize")
    return torch.histogram(input, *args, weight=weight, **kwargs)
