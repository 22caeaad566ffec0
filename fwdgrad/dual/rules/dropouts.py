"""Dropout and its kin: y = m x + b with random m, b: the tangent is m tx, with the m that the value was made with.

The masks are drawn by PyTorch's own function, called once on a constant of x's kind and layout: the generator goes on
as in a plain forward pass, and under the same seed the value is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import Dual, blocks, dual, tangent

nn: Any = torch._C._nn


def _scaling(function: Any) -> None:
    """Enter a function that multiplies by a random mask, which it thus returns of ones."""

    @rule(function)
    def handler(input: Tensor, p: float, train: bool) -> Tensor:
        if type(input) is Dual and not train:
            return input
        in_blocks = blocks(input)
        t = tangent(input) if in_blocks is None else None
        if (t is None and in_blocks is None) or p == 0 or input.numel() == 0:
            return function(input, p, train)
        mask = function(torch.ones_like(input), p, train)
        if in_blocks is not None:
            return dual(input * mask, in_blocks.map(lambda t: t * mask))
        return dual(input * mask, t * mask)


_scaling(torch.dropout)
_scaling(torch.feature_dropout)


def _alpha(function: Any) -> None:
    """Enter alpha dropout: ``a x + b`` where kept (b > 0) and b < 0 where dropped; of zeros it returns b.

    With q = 1 - p and the saturation value -alpha' of SELU, ``a = ((alpha'^2 p + 1) q)^(-1/2)``.
    """

    @rule(function)
    def handler(input: Tensor, p: float, train: bool) -> Tensor:
        t = tangent(input)
        if t is None or not train or p == 0 or input.numel() == 0:
            return input if not train and t is not None else function(input, p, train)
        shift = function(torch.zeros_like(input), p, train)
        if p == 1:
            return dual(shift, torch.zeros_like(t))
        saturation = 1.7580993408473766
        kept = (shift.real if shift.is_complex() else shift) > 0
        slope = kept.to(input.dtype).mul_(1 / ((saturation * saturation * p + 1) * (1 - p)) ** 0.5)
        return dual((input * slope).add_(shift), t * slope)


_alpha(torch.alpha_dropout)
_alpha(torch.feature_alpha_dropout)


@rule(torch.rrelu)
def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Tensor:
    """Push t where x > 0, else t times the random slope; in evaluation the slope is (lower + upper) / 2."""
    t = tangent(input)
    if t is None:
        return torch.rrelu(input, lower, upper, training, generator)
    if not training:
        slope = torch.full_like(input, (lower + upper) / 2).masked_fill_(input > 0, 1)
        return dual(input * slope, t * slope)
    noise = torch.ones_like(input)
    y = nn.rrelu_with_noise(input, noise, lower, upper, True, generator)
    return dual(y, t * noise)
