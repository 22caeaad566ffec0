"""Convolutions, y = x * w + b: tangent tx * w + x * tw + tb, the K tangents of the input folded into the batch.

For a low-rank direction, tw[o] = sum_r a_r[o] C_r, the middle term is sum_r a_r[o] (x * C_r): one map for each r
instead of one for each output channel. For a per-example direction example b has its own a and C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.correlation import Geometry, correlate, correlate_each
from fwdgrad.dual.folding import scale_tangent
from fwdgrad.dual.forms import has_tangent
from fwdgrad.dual.registry import register
from fwdgrad.dual.tensor import blocks, dense, dual, structured, tangent
from fwdgrad.tangents import LowRank, PerExample


def _convolution(function: Any, spatial: int) -> Any:
    """Make the rule of ``torch.conv1d``, ``conv2d`` or ``conv3d``."""

    def push(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        y = function(input, weight, bias, stride, padding, dilation, groups)
        in_blocks = blocks(input)
        if in_blocks is not None and not has_tangent(weight, bias) and y.dim() == spatial + 2:
            t = in_blocks.convolve(function, weight, y.shape[2:], stride, padding, dilation)
            if t is not None:
                return dual(y, t)
        tx, tw, tb = tangent(input), structured(weight), structured(bias)
        if tx is None and tw is None and tb is None:
            return y
        if input.dim() == spatial + 1:
            z, tx = y.unsqueeze(0), None if tx is None else tx.unsqueeze(1)
        else:
            z = y
        shift = None if tb is None else scale_tangent(bias, z, 1)
        t = None
        if tx is not None:
            fused = dense(tb)[0] if tw is not None and type(tb) is Tensor and len(tb) == 1 else None
            shift = shift if fused is None else None
            t = function(tx.flatten(0, 1), weight, fused, stride, padding, dilation, groups)
            t = t.unflatten(0, tx.shape[:2])
        if tw is not None:
            x = input if z is y else input.unsqueeze(0)
            at = Geometry.of(y, spatial, weight.shape[2:], stride, padding, dilation)
            if type(tw) is LowRank or type(tw) is PerExample:
                t = _add_outer(t, *_maps(x, tw, at, groups), shift, z)
                shift = None
            else:
                term = [function(x, w, None, stride, padding, dilation, groups) for w in dense(tw)]
                t = torch.stack(term) if t is None else t.add_(torch.stack(term))
        if shift is not None:
            t = shift.expand(shift.shape[0], *z.shape).clone() if t is None else t.add_(shift)
        return dual(y, t if z is y or t is None else t.squeeze(1))

    return push


def _maps(x: Tensor, tw: Any, at: Geometry, groups: int) -> tuple[Tensor, Tensor]:
    """Return the maps x * C and the factors a, of shapes (K, r, B, g, 1, *out) and (K, r, B or 1, g, o, 1, ...)."""
    ones = (1,) * len(at.out)
    batch = x.shape[0]
    if groups > 1:
        x = x.reshape(batch * groups, -1, *x.shape[2:])
    if type(tw) is LowRank:
        s = correlate(x, tw.right.flatten(0, 1), at)
        s = s.view(*tw.left.shape[:2], batch, groups, 1, *s.shape[2:])
        return s, tw.left.view(*tw.left.shape[:2], 1, groups, -1, *ones)
    left, right = tw.factors(batch)
    if groups > 1:
        right = right.repeat_interleave(groups, 1)
    s = correlate_each(x, right, at)
    s = s.view(right.shape[0], 1, batch, groups, 1, *s.shape[2:])
    return s, left.view(left.shape[0], 1, batch, groups, -1, *ones)


def _add_outer(t: Tensor | None, s: Tensor, a: Tensor, shift: Tensor | None, y: Tensor) -> Tensor:
    """Return t + sum_r s_r a_r + shift, in t's own memory, or in new memory in the format of y."""
    start = 0
    if t is None:
        t = _like(y, s.shape[0])
        out = t.unflatten(2, s.shape[3:4] + a.shape[4:5])
        if shift is None:
            torch.mul(s[:, 0], a[:, 0], out=out)
        else:
            torch.addcmul(shift.unflatten(2, s.shape[3:4] + a.shape[4:5]), s[:, 0], a[:, 0], out=out)
            shift = None
        start = 1
    target = t.unflatten(2, s.shape[3:4] + a.shape[4:5])
    for r in range(start, s.shape[1]):
        target.addcmul_(s[:, r], a[:, r])
    return t if shift is None else t.add_(shift)


def _like(y: Tensor, count: int) -> Tensor:
    """Return new tangents (K, *y.shape), each in the memory format of y."""
    if y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last):
        shape = (count * y.shape[0], *y.shape[1:])
        flat = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
        return flat.unflatten(0, (count, y.shape[0]))
    return torch.empty((count, *y.shape), dtype=y.dtype, device=y.device)


def _transposed(function: Any, spatial: int) -> Any:
    """Make the rule of ``torch.conv_transpose1d``, ``2d`` or ``3d``, whose weight is (in, out / groups, *kernel).

    With tw[i] = sum_r a_r[i] C_r the input channels are first weighed by a_r, then spread by C_r.
    """

    def push(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        y = function(input, weight, bias, stride, padding, output_padding, groups, dilation)
        tx, tw, tb = tangent(input), structured(weight), structured(bias)
        if tx is None and tw is None and tb is None:
            return y
        x, z = (input, y) if input.dim() == spatial + 2 else (input.unsqueeze(0), y.unsqueeze(0))
        t = None
        if tx is not None:
            flat = tx.flatten(0, 1) if z is y else tx
            t = function(flat, weight, None, stride, padding, output_padding, groups, dilation)
            t = t.view(tx.shape[0], *z.shape) if t.is_contiguous() else t.unflatten(0, (tx.shape[0], z.shape[0]))
        if type(tw) is PerExample or (type(tw) is LowRank and groups == 1):
            s, kernels, apart = _spread_factors(x, tw, groups)
            term = function(s, kernels, None, stride, padding, output_padding, apart, dilation)
            if type(tw) is PerExample:
                term = term.view(z.shape[0], tw.num_directions, *z.shape[1:])
            else:
                term = term.unflatten(1, (tw.num_directions, -1))
            t = _plus(t, term.transpose(0, 1))
        elif tw is not None:
            terms = [function(x, w, None, stride, padding, output_padding, groups, dilation) for w in dense(tw)]
            t = _plus(t, torch.stack(terms))
        shift = scale_tangent(bias, z, 1)
        if shift is not None:
            t = _plus(t, shift.expand(shift.shape[0], *z.shape) if t is None else shift)
        return dual(y, t if z is y or t is None else t.squeeze(1))

    return push


def _plus(t: Tensor | None, term: Any) -> Tensor:
    return term.clone(memory_format=torch.contiguous_format) if t is None else t.add_(term)


def _spread_factors(x: Tensor, tw: Any, groups: int) -> tuple[Tensor, Tensor, int]:
    """Return an input, kernels and a number of groups with which a transposed convolution gives x * tw."""
    if type(tw) is LowRank:
        count, rank = tw.left.shape[:2]
        s = torch.matmul(tw.left.flatten(0, 1), x.flatten(2)).view(x.shape[0], count * rank, *x.shape[2:])
        return s, tw.right.flatten(0, 1), count
    if groups > 1:
        raise NotImplementedError("per-example directions of a grouped transposed convolution; choose a shared one")
    left, right = tw.factors(x.shape[0])
    s = torch.matmul(left.transpose(0, 1), x.flatten(2))
    s = s.view(1, -1, *x.shape[2:])
    return s, right.transpose(0, 1).flatten(0, 1), right.shape[0] * right.shape[1]


for _spatial, _name in enumerate(("conv1d", "conv2d", "conv3d"), 1):
    register(_convolution(getattr(torch, _name), _spatial), getattr(torch, _name))
for _spatial, _name in enumerate(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 1):
    register(_transposed(getattr(torch, _name), _spatial), getattr(torch, _name))
