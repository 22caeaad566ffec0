"""Pooling to a given size, at random places, and back: averages are linear, a maximum passes on what it picked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.pooling import averaging
from fwdgrad.dual.tensor import dual, tangent

nn = torch._C._nn

averaging(torch.adaptive_avg_pool1d, 1)
averaging(nn.adaptive_avg_pool2d, 2)
averaging(nn.adaptive_avg_pool3d, 3)


def _maximum(function: Any, spatial: int) -> None:
    """Enter a pooling that returns (values, indices), the indices into each channel's flattened last dimensions."""

    @rule(function)
    def handler(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        values, indices = function(input, *args, **kwargs)
        t = tangent(input)
        if t is None:
            return values, indices
        picked = indices.flatten(-spatial).expand(t.shape[0], *indices.shape[:-spatial], -1)
        return dual(values, t.flatten(-spatial).gather(-1, picked).view(t.shape[0], *values.shape)), indices


_maximum(torch.adaptive_max_pool1d, 1)
_maximum(nn.adaptive_max_pool2d, 2)
_maximum(nn.adaptive_max_pool3d, 3)
_maximum(nn.fractional_max_pool2d, 2)
_maximum(nn.fractional_max_pool3d, 3)


def _unpooling(function: Any, spatial: int) -> None:
    """Enter an unpooling, linear in the values that it puts where the indices say."""

    @rule(function)
    def handler(input: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = function(input, indices, *args, **kwargs)
        t = tangent(input)
        if t is None:
            return y
        places = indices.expand(t.shape)
        if input.dim() == spatial + 1:
            return dual(y, function(t, places, *args, **kwargs))
        pushed = function(t.flatten(0, 1), places.flatten(0, 1), *args, **kwargs)
        return dual(y, pushed.view(t.shape[0], *y.shape))


_unpooling(nn.max_unpool2d, 2)
_unpooling(nn.max_unpool3d, 3)
