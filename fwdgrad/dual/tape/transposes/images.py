"""Convolutions, pooling, resampling and margins of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.table import aten, transpose


def _stand_in(x: Any, u: Tensor) -> Tensor:
    """Return a tensor of x's shape of which only the shape matters."""
    return torch.empty(x.shape, dtype=u.dtype, device=u.device)


def _pull_convolution(place: int) -> Any:
    mask = [i == place for i in range(3)]

    def pull(u: Tensor, x: Any, w: Any, b: Any, *rest: Any) -> Tensor:
        x = x if isinstance(x, Tensor) else _stand_in(x, u)
        w = w if isinstance(w, Tensor) else _stand_in(w, u)
        return aten.convolution_backward(u, x, w, None, *rest, mask)[place]

    return pull


transpose(
    aten.convolution,
    _pull_convolution(0),
    _pull_convolution(1),
    lambda u, x, w, b, *rest: u.sum([0, *range(2, u.dim())]),
    terms=((0, 1), (2,)),
)


def _by_shape(op: Any, backward: Any) -> None:
    """Enter an operation whose transpose PyTorch has as ``backward(u, x, *args)``, with only the shape of x used."""
    transpose(op, lambda u, x, *args: backward(u, _stand_in(x, u), *args))


def _averaging(spatial: int) -> None:
    backward = getattr(aten, f"avg_pool{spatial}d_backward")

    def pull(
        u: Tensor,
        x: Any,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Tensor:
        padding = [padding] * spatial if isinstance(padding, int) else padding
        return backward(u, _stand_in(x, u), kernel, stride, padding, ceil_mode, count_include_pad, divisor)

    transpose(getattr(aten, f"avg_pool{spatial}d"), pull)


_averaging(2)
_averaging(3)
_by_shape(aten._adaptive_avg_pool2d, lambda u, x, size: aten._adaptive_avg_pool2d_backward(u, x))
_by_shape(aten._adaptive_avg_pool3d, lambda u, x, size: aten._adaptive_avg_pool3d_backward(u, x))
for _spatial in (1, 2, 3):
    for _name in (f"reflection_pad{_spatial}d", f"replication_pad{_spatial}d"):
        _by_shape(getattr(aten, _name), getattr(aten, f"{_name}_backward"))


def _unpooling(op: Any, spatial: int) -> None:
    def pull(u: Tensor, x: Any, indices: Tensor, *size: Any) -> Tensor:
        """Read where each entry went; of several that went to one place, the one that stayed gets its cotangent."""
        places = indices.flatten(-spatial)
        numbers = torch.arange(1.0, indices.numel() + 1, dtype=torch.float64, device=u.device).view(indices.shape)
        stayed = op(numbers, indices, *size).flatten(-spatial).gather(-1, places) == numbers.view(places.shape)
        return torch.where(stayed, u.flatten(-spatial).gather(-1, places), 0).view(indices.shape)

    transpose(op, pull)


_unpooling(aten.max_unpool2d.default, 2)
_unpooling(aten.max_unpool3d.default, 3)


def _resampling(name: str) -> None:
    backward = getattr(aten, f"{name}_backward")
    transpose(getattr(aten, name).default, lambda u, x, size, *rest: backward(u, size, list(x.shape), *rest))


for _name in (
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_bicubic2d"),
    *("upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
):
    _resampling(_name)


def _sampling(spatial: int) -> None:
    backward = getattr(aten, f"grid_sampler_{spatial}d_backward")
    transpose(
        getattr(aten, f"grid_sampler_{spatial}d"),
        lambda u, x, grid, *rest: backward(u, _stand_in(x, u), grid, *rest, [True, False])[0],
    )


_sampling(2)
_sampling(3)
transpose(aten.affine_grid_generator, lambda u, x, size, align: aten.affine_grid_generator_backward(u, size, align))
transpose(
    aten.im2col,
    lambda u, x, kernel, dilation, padding, stride: aten.col2im(
        u, list(x.shape[-2:]), kernel, dilation, padding, stride
    ),
)
transpose(
    aten.col2im, lambda u, x, size, kernel, dilation, padding, stride: aten.im2col(u, kernel, dilation, padding, stride)
)
