"""Regions cut out of feature maps: torchvision's C++ operators, whose tangents PyTorch's own forward mode drops.

They are known by name, so that torchvision need not be there. As in their backward, the boxes have no derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import per_direction
from fwdgrad.dual.registry import operator_rule
from fwdgrad.dual.tape.linear_map import linear_map
from fwdgrad.dual.tensor import dual, tangent


@operator_rule("torchvision::roi_align")
def roi_align(operator: Any, input: Tensor, rois: Tensor, *sizes: Any) -> Tensor:
    """Push the tangent as the map itself: each output is a fixed mean of interpolated entries."""
    y, t = operator(input, rois, *sizes), tangent(input)
    if t is None:
        return y
    shape = input.shape

    def push(t: Tensor, rois: Tensor) -> Tensor:
        return per_direction(lambda tk: operator(tk, rois, *sizes), t)

    def pull(u: Tensor, rois: Tensor) -> Tensor:
        backward = torch.ops.torchvision._roi_align_backward
        return backward(u[0], rois, *sizes[:3], *shape, *sizes[3:]).unsqueeze(0)

    return dual(y, linear_map(push, pull, t, y, rois))


@operator_rule("torchvision::ps_roi_align", "torchvision::ps_roi_pool")
def ps_roi(operator: Any, input: Tensor, rois: Tensor, *sizes: Any) -> Any:
    """Do the same for the position-sensitive means, which also return the channel that each output is taken from."""
    (y, channels), t = operator(input, rois, *sizes), tangent(input)
    if t is None:
        return y, channels
    shape = input.shape

    def push(t: Tensor, rois: Tensor, channels: Tensor) -> Tensor:
        return per_direction(lambda tk: operator(tk, rois, *sizes)[0], t)

    def pull(u: Tensor, rois: Tensor, channels: Tensor) -> Tensor:
        backward = getattr(torch.ops.torchvision, f"_{operator.__name__}_backward")
        return backward(u[0], rois, channels, *sizes, *shape).unsqueeze(0)

    return dual(y, linear_map(push, pull, t, y, rois, channels)), channels


@operator_rule("torchvision::roi_pool")
def roi_pool(operator: Any, input: Tensor, rois: Tensor, *sizes: Any) -> Any:
    """Push the tangent at the place of each maximum; an empty bin is zero."""
    (y, where), t = operator(input, rois, *sizes), tangent(input)
    if t is None:
        return y, where
    maps = t[:, rois[:, 0].long()].flatten(3)  # (K, boxes, channels, height * width)
    places = where.flatten(2).long().clamp(min=0).expand(t.shape[0], -1, -1, -1)
    picked = torch.where(where < 0, 0, maps.gather(3, places).view(t.shape[0], *y.shape))
    return dual(y, picked), where
