"""The K tangents of a batch of images folded into its batch dimension; tangents of scales and shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tensor import dense, structured
from fwdgrad.tangents import PerExample


def folded(function: Callable[..., Tensor], unbatched: int) -> Callable[..., Tensor]:
    """Return ``batched`` for ``forms.linear``: one call of ``function`` on the tangents of all K directions.

    Args:
        function: takes a tensor with ``unbatched`` dimensions, or with one more, the batch, in front.
        unbatched: number of dimensions of the form without a batch; -1 if there is no such form.
    """

    def batched(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if t.dim() == unbatched + 1:
            return function(t, *args, **kwargs)
        return function(t.flatten(0, 1), *args, **kwargs).unflatten(0, t.shape[:2])

    return batched


def layout_of(x: Tensor) -> torch.memory_format:
    """Return channels_last for images that lie so in memory, or else contiguous_format."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def scale_tangent(parameter: Any, y: Tensor, first: int) -> Tensor | None:
    """Return the tangents of a scale or shift of y so that they broadcast against (K, *y.shape), or None.

    Args:
        parameter: of the shape of some of y's dimensions in a row; dense, low-rank or per-example tangents.
        y: the result, its first dimension the batch.
        first: the dimension of y, from the left, with which the parameter's begin.
    """
    t = structured(parameter)
    if t is None:
        return None
    if isinstance(t, PerExample):
        t = per_example_values(t, y.shape[0])
        lead, shape = t.shape[:2], t.shape[2:]
        return t.view(*lead, *(1,) * (first - 1), *shape, *(1,) * (y.dim() - first - len(shape)))
    t = dense(t)
    assert t is not None
    return t.view(t.shape[0], *(1,) * first, *t.shape[1:], *(1,) * (y.dim() - first - t.dim() + 1))


def per_example_values(t: PerExample, batch_size: int) -> Tensor:
    """Return a per-example direction of a small parameter, (K, B, *shape)."""
    left, right = t.factors(batch_size)
    if right is None:
        return left
    return left.view(*left.shape, *(1,) * (right.dim() - 2)) * right.unsqueeze(2)


def total(*terms: Tensor | None) -> Tensor | None:
    """Return the sum of the terms that are not None, or None."""
    out = None
    for term in terms:
        if term is not None:
            out = term if out is None else torch.add(out, term)
    return out
