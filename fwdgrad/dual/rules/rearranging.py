"""The same entries elsewhere, repeated or dropped: flips, repetitions, triangles, padding, windows. All are linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, composite, linear, per_direction, shift
from fwdgrad.dual.registry import register, rule
from fwdgrad.dual.rules.shapes import sizes_of
from fwdgrad.dual.tensor import dual, dual_sharing, tangent

_nn = torch._C._nn


def _dims(args: tuple[Any, ...], dims: Any) -> tuple[int, ...]:
    return sizes_of(args if dims is None else (dims,))


linear(Tensor.flip, batched=lambda t, *args, dims=None: t.flip([shift(d) for d in _dims(args, dims)]))
linear(torch.fliplr, batched=lambda t: t.flip(2))
linear(torch.flipud, batched=lambda t: t.flip(1))
linear(torch.rot90, batched=lambda t, k=1, dims=(0, 1): t.rot90(k, [shift(d) for d in dims]))


def _roll(t: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    if isinstance(dims, int):
        return t.roll(shifts, shift(dims))
    if len(dims):
        return t.roll(shifts, [shift(d) for d in dims])
    return t.flatten(1).roll(shifts, 1).view(t.shape)


linear(torch.roll, batched=_roll)
linear(torch.tril, batched=torch.tril)
linear(torch.triu, batched=torch.triu)
linear(torch.trace, batched=lambda t: t.diagonal(dim1=-2, dim2=-1).sum(-1))


def _repeat(function: Callable[..., Any]) -> None:
    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = function(input, *args, **kwargs)
        t = tangent(input)
        if t is None:
            return y
        sizes = [n // m if m else 1 for n, m in zip(y.shape, (1,) * (y.dim() - input.dim()) + input.shape, strict=True)]
        return dual(y, align(t, y.dim()).repeat(1, *sizes).reshape(t.shape[0], *y.shape))

    register(handler, function)


_repeat(Tensor.repeat)
_repeat(Tensor.tile)


@rule(torch.repeat_interleave)
def repeat_interleave(input: Tensor, repeats: Any = None, dim: int | None = None, **kwargs: Any) -> Tensor:
    """Repeat the tangents of the entries along a dimension, of the flattened input by default."""
    if repeats is None:
        return torch.repeat_interleave(input, **kwargs)
    y, t = torch.repeat_interleave(input, repeats, dim, **kwargs), tangent(input)
    if t is None:
        return y
    t = t.reshape(t.shape[0], -1) if dim is None or input.dim() == 0 else t
    axis = 1 if dim is None or input.dim() == 0 else shift(dim)
    pushed = torch.repeat_interleave(t, repeats, axis, **kwargs)
    return dual(y, pushed) if pushed._base is None else dual_sharing(y, pushed, input)


@composite(torch.diagflat)
def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """Write the flattened input on a diagonal."""
    return torch.diag_embed(input.flatten(), offset)


# Padding: with a constant the tangent is padded with zeros.


def _pad_constant(t: Tensor, pad: Any, value: Any = 0) -> Tensor:
    return torch.constant_pad_nd(t, pad, 0)


linear(torch.constant_pad_nd, batched=_pad_constant)


def _pad(t: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    """Pad the last dimensions; the other modes want exactly one or two dimensions before those."""
    if mode == "constant":
        return torch.constant_pad_nd(t, pad, 0)
    if t.dim() == len(pad) // 2 + 3:
        return _nn.pad(t.flatten(0, 1), pad, mode).unflatten(0, t.shape[:2])
    if t.dim() == len(pad) // 2 + 2:
        return _nn.pad(t, pad, mode)
    return per_direction(lambda tk: _nn.pad(tk, pad, mode), t)


linear(_nn.pad, batched=_pad)


def _spatial(function: Callable[..., Tensor], dims: int) -> None:
    """Enter a function of (N, C, ...) with ``dims`` dimensions behind C, or of (C, ...): N may be K, or K and N."""

    def batched(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if t.dim() == dims + 2:
            return function(t, *args, **kwargs)
        return function(t.flatten(0, 1), *args, **kwargs).unflatten(0, t.shape[:2])

    linear(function, batched=batched)


for _count, _suffix in enumerate(("1d", "2d", "3d"), start=1):
    _spatial(getattr(_nn, f"reflection_pad{_suffix}"), _count)
    _spatial(getattr(_nn, f"replication_pad{_suffix}"), _count)
_spatial(_nn.im2col, 2)
_spatial(_nn.col2im, 1)

# Pixels and channels.
linear(torch.pixel_shuffle, batched=torch.pixel_shuffle)
linear(torch.pixel_unshuffle, batched=torch.pixel_unshuffle)
linear(torch.channel_shuffle)
