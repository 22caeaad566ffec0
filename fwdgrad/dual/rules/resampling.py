"""Linear maps of images: interpolation, shuffled pixels and channels, sliding blocks, affine grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.folding import folded
from fwdgrad.dual.forms import linear
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent

nn = torch._C._nn

for _name in dir(nn):  # always batched; what F.interpolate calls, of every mode and number of dimensions
    if _name.lstrip("_").startswith("upsample_") and not _name.endswith("_backward"):
        linear(getattr(nn, _name), batched=folded(getattr(nn, _name), -1))

linear(torch.pixel_shuffle, batched=lambda t, upscale_factor: torch.pixel_shuffle(t, upscale_factor))
linear(torch.pixel_unshuffle, batched=lambda t, downscale_factor: torch.pixel_unshuffle(t, downscale_factor))
linear(torch.channel_shuffle, batched=folded(torch.channel_shuffle, -1))
linear(torch.native_channel_shuffle, batched=folded(torch.native_channel_shuffle, -1))
linear(nn.im2col, batched=folded(nn.im2col, 3))
linear(nn.col2im, batched=folded(nn.col2im, 2))


@rule(torch.affine_grid_generator)
def affine_grid_generator(theta: Tensor, size: Any, align_corners: bool) -> Tensor:
    """Push the grid that the tangents of the matrices generate: it is linear in them."""
    y = torch.affine_grid_generator(theta, size, align_corners)
    t = tangent(theta)
    if t is None:
        return y
    count = t.shape[0]
    pushed = torch.affine_grid_generator(t.flatten(0, 1), [count * size[0], *size[1:]], align_corners)
    return dual(y, pushed.view(count, *y.shape))
