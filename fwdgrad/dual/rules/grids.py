"""Sampling of images and volumes at the points of a grid.

The value at a point is ``y = sum_c x_c prod_d w_d(c)``: over the taps c (corners of a cell, or 4 x 4 neighbours), with
one weight for each dimension d. It is linear in x; in the grid its tangent is ``sum_d tg_d (dy / dg_d)``, where in
``dy / dg_d`` the weight of dimension d is replaced by its derivative. These images are shared by the K directions.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent

_NEAREST, _CUBIC = 1, 2
_BORDER, _REFLECTION = 1, 2
_A = -0.75  # of the cubic convolution kernel, as in PyTorch


class _Tap(NamedTuple):
    """One neighbour of the points in one dimension."""

    place: Tensor
    inside: Tensor
    weight: Tensor
    derivative: Tensor  # of the weight by the normalised coordinate


@rule(torch.grid_sampler, torch.grid_sampler_2d, torch.grid_sampler_3d)
def grid_sampler(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """Push the sampled tangents of the image and the moved points."""
    y = torch.grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners)
    tx, tg = tangent(input), tangent(grid)
    t = None
    if tx is not None:
        points = grid.expand(tx.shape[0], *grid.shape).flatten(0, 1)
        t = torch.grid_sampler(tx.flatten(0, 1), points, interpolation_mode, padding_mode, align_corners)
        t = t.view(tx.shape[0], *y.shape)
    if tg is not None:
        moved = tg.new_zeros((tg.shape[0], *y.shape), dtype=y.dtype)
        if interpolation_mode != _NEAREST:
            slopes = _slopes(input, grid, interpolation_mode, padding_mode, align_corners)
            for d, slope in enumerate(slopes):
                moved.addcmul_(tg[..., d].unsqueeze(2).to(y.dtype), slope)
        t = moved if t is None else t + moved
    return dual(y, t)


def _slopes(x: Tensor, grid: Tensor, mode: int, padding: int, align: bool) -> list[Tensor]:
    """Return dy / dg_d for each d, in the grid's order (x, y, z)."""
    sizes = x.shape[2:]
    taps = []  # by dimension of the image; the grid names them in reverse
    for d, size in enumerate(sizes):
        at, scale = _unnormalized(grid[..., len(sizes) - 1 - d], size, align)
        taps.append(
            _cubic_taps(at, scale, size, padding, align)
            if mode == _CUBIC
            else _linear_taps(at, scale, size, padding, align)
        )
    flat = x.flatten(2)
    out = [torch.zeros((*x.shape[:2], *grid.shape[1:-1]), dtype=x.dtype, device=x.device) for _ in sizes]
    for corner in itertools.product(*taps):
        index = torch.zeros_like(corner[0].place)
        inside = torch.ones_like(corner[0].inside)
        for tap, size in zip(corner, sizes, strict=True):
            index = index * size + tap.place.clamp(0, size - 1)
            inside = inside & tap.inside
        values = flat.gather(2, index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1))
        values = values.view(*x.shape[:2], *index.shape[1:]) * inside.unsqueeze(1)
        for d in range(len(sizes)):
            factor = corner[d].derivative
            for e in range(len(sizes)):
                if e != d:
                    factor = factor * corner[e].weight
            out[d].addcmul_(values, factor.unsqueeze(1).to(x.dtype))
    return out[::-1]


def _unnormalized(g: Tensor, size: int, align: bool) -> tuple[Tensor, float]:
    """Map [-1, 1] to pixels; return the coordinate and its derivative."""
    if align:
        return (g + 1) * ((size - 1) / 2), (size - 1) / 2
    return ((g + 1) * size - 1) / 2, size / 2


def _linear_taps(at: Tensor, scale: float, size: int, padding: int, align: bool) -> list[_Tap]:
    at, slope = _padded(at, size, padding, align)
    low = at.floor()
    fraction = at - low
    slope = slope * scale
    return [_tap(low, size, 1 - fraction, -slope), _tap(low + 1, size, fraction, slope)]


def _cubic_taps(at: Tensor, scale: float, size: int, padding: int, align: bool) -> list[_Tap]:
    """The padding moves each tap by itself, so the weights know nothing of it."""
    low = at.floor()
    taps = []
    for offset in (-1, 0, 1, 2):
        weight, derivative = _cubic(at - low - offset)
        taps.append(_tap(_padded(low + offset, size, padding, align)[0], size, weight, derivative * scale))
    return taps


def _cubic(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cubic convolution kernel and its derivative at u in [-2, 2]."""
    v = u.abs()
    near, far = v <= 1, ((_A * v - 5 * _A) * v + 8 * _A) * v - 4 * _A
    weight = torch.where(near, ((_A + 2) * v - (_A + 3)) * v * v + 1, far)
    derivative = torch.where(near, (3 * (_A + 2) * v - 2 * (_A + 3)) * v, (3 * _A * v - 10 * _A) * v + 8 * _A)
    return weight, derivative * u.sign()


def _tap(index: Tensor, size: int, weight: Tensor, derivative: Tensor) -> _Tap:
    index = index.nan_to_num(-1.0).clamp(-1, size).long()
    return _Tap(index, (index >= 0) & (index < size), weight, derivative)


def _padded(at: Tensor, size: int, padding: int, align: bool) -> tuple[Tensor, Tensor]:
    """Apply the padding mode to pixel coordinates; return them and the derivative, 0 where they are clipped."""
    slope = torch.ones_like(at)
    if padding == _REFLECTION:
        low, span = (0.0, size - 1.0) if align else (-0.5, float(size))
        if span == 0:
            return torch.zeros_like(at), torch.zeros_like(at)
        slope = torch.where(at < low, -slope, slope)
        distance = (at - low).abs()
        odd = (distance / span).floor() % 2 == 1
        rest = distance.fmod(span)
        at = torch.where(odd, span - rest, rest) + low
        slope = torch.where(odd, -slope, slope)
    if padding in (_BORDER, _REFLECTION):
        slope = slope * ((at > 0) & (at < size - 1))
        at = at.clamp(0, size - 1)
    return at, slope
