"""Pooling: averages are linear; a maximum passes on the tangent of the entry that it picked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.folding import folded
from fwdgrad.dual.forms import linear
from fwdgrad.dual.registry import register
from fwdgrad.dual.tensor import blocks, dual, relu_source, tangent

_nn = torch._C._nn


def averaging(function: Callable[..., Tensor], spatial: int) -> None:
    """Enter a pooling that takes averages within each channel; blocks of whole channels stay blocks."""
    push = folded(function, spatial + 1)
    plain = linear(function, batched=push)

    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        in_blocks = blocks(input)
        if in_blocks is not None and input.dim() == spatial + 2:
            moved = in_blocks.by_channel(lambda t: push(t, *args, **kwargs))
            if moved is not None:
                return dual(function(input, *args, **kwargs), moved)
        return plain(input, *args, **kwargs)

    register(handler, function)


averaging(torch.avg_pool1d, 1)
averaging(_nn.avg_pool2d, 2)
averaging(_nn.avg_pool3d, 3)


def _picked(t: Tensor, indices: Tensor, spatial: int) -> Tensor:
    """Return the entries of tangents (K, ..., C, *in) at indices (..., C, *out) into each channel's positions."""
    if spatial == 2 and indices.dim() == 4 and indices.is_contiguous(memory_format=torch.channels_last):
        # Channels last: gathered along the positions, with the channels innermost as they are in memory.
        places = indices.permute(0, 2, 3, 1).flatten(1, 2)
        values = t.permute(0, 1, 3, 4, 2).flatten(2, 3).gather(2, places.expand(t.shape[0], *places.shape))
        return values.unflatten(2, indices.shape[2:]).permute(0, 1, 4, 2, 3)
    places = indices.flatten(-spatial)
    values = t.flatten(-spatial).gather(-1, places.expand(t.shape[0], *places.shape))
    return values.view(t.shape[0], *indices.shape)


def _maximum(spatial: int) -> None:
    plain = getattr(torch, f"max_pool{spatial}d")
    both = torch.max_pool1d_with_indices if spatial == 1 else getattr(_nn, f"max_pool{spatial}d_with_indices")
    functional = getattr(F, f"max_pool{spatial}d_with_indices")

    def pair(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = True,
    ) -> tuple[Tensor, Tensor]:
        values, indices = both(input, kernel_size, [] if stride is None else stride, padding, dilation, ceil_mode)
        in_blocks = blocks(input)
        if in_blocks is not None and input.dim() == spatial + 2:
            moved = in_blocks.by_channel(lambda t: _picked(t, indices, spatial))
            if moved is not None:
                return dual(values, moved), indices
        unmasked = relu_source(input)  # the largest entry of relu(x) is masked iff it is not positive
        if unmasked is not None:
            picked = _picked(unmasked, indices, spatial)
            torch.ops.aten.threshold_backward.grad_input(picked, values, 0, grad_input=picked)
            return dual(values, picked), indices
        t = tangent(input)
        return values if t is None else dual(values, _picked(t, indices, spatial)), indices

    def value(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return pair(input, *args, **kwargs)[0]

    register(value, plain)
    register(pair, both, functional)


for _spatial in (1, 2, 3):
    _maximum(_spatial)
