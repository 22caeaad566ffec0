"""Adaptive and fractional pooling, interpolation, grids, and rearrangements of pixels."""

import pytest
import torch
import torch.nn.functional as F
from checks import check


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


SHAPES = {1: (2, 3, 7), 2: (2, 3, 7, 5), 3: (2, 3, 5, 4, 6)}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_adaptive_pooling(n: int, batched: bool) -> None:
    x = randn(*SHAPES[n]) if batched else randn(*SHAPES[n][1:])
    for size in (1, 3):
        check(lambda x, size=size: getattr(F, f"adaptive_avg_pool{n}d")(x, size), x)
        check(lambda x, size=size: getattr(F, f"adaptive_max_pool{n}d")(x, size), x)
        check(lambda x, size=size: getattr(F, f"adaptive_max_pool{n}d")(x, size, return_indices=True), x)


def test_adaptive_pooling_of_channels_last() -> None:
    x = randn(2, 3, 7, 5).to(memory_format=torch.channels_last)
    check(lambda x: F.adaptive_avg_pool2d(x, (1, 1)), x)
    check(lambda x: F.adaptive_avg_pool2d(x, (None, 2)), x)
    check(lambda x: F.adaptive_max_pool2d(x, 2), x)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_lp_pool(n: int) -> None:
    check(lambda x: getattr(F, f"lp_pool{n}d")(x, 2.0, 2), randn(*SHAPES[n]).abs() + 0.1)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("n", [2, 3])
def test_fractional_max_pool(n: int, batched: bool) -> None:
    shape = (2, 3, 7, 6, 8)[: n + 2]
    x = randn(*shape) if batched else randn(*shape[1:])
    pool = getattr(F, f"fractional_max_pool{n}d")
    samples = torch.rand(x.shape[0] if batched else 1, 3, n, dtype=torch.float64)
    check(lambda x: pool(x, 2, output_size=3, _random_samples=samples), x)
    check(lambda x: pool(x, 2, output_ratio=(0.6,) * n, return_indices=True, _random_samples=samples), x)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_max_unpool(n: int, batched: bool) -> None:
    x = randn(*{1: (2, 3, 8), 2: (2, 3, 8, 6), 3: (2, 3, 4, 4, 6)}[n])
    pooled, indices = getattr(F, f"max_pool{n}d")(x if batched else x[0], 2, return_indices=True)
    check(lambda y: getattr(F, f"max_unpool{n}d")(y, indices, 2), pooled)


MODES = [
    *[(mode, n) for mode in ("nearest", "nearest-exact", "area") for n in (1, 2, 3)],
    *[("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3)],
]


@pytest.mark.parametrize(("mode", "n"), MODES)
def test_interpolate(mode: str, n: int) -> None:
    x = randn(*SHAPES[n])
    flags = [None] if mode in ("nearest", "nearest-exact", "area") else [False, True]
    for align_corners in flags:
        check(lambda x, a=align_corners: F.interpolate(x, size=9, mode=mode, align_corners=a), x)
        check(lambda x, a=align_corners: F.interpolate(x, scale_factor=0.6, mode=mode, align_corners=a), x)
    check(
        lambda x: F.interpolate(x, scale_factor=1.5, mode=mode, recompute_scale_factor=True, align_corners=flags[0]), x
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_interpolate_antialiased(mode: str) -> None:
    check(lambda x: F.interpolate(x, size=(3, 4), mode=mode, antialias=True), randn(2, 3, 7, 9))
    check(lambda x: F.interpolate(x, size=(3, 4), mode=mode, antialias=True, align_corners=True), randn(2, 3, 7, 9))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("mode", "n"), [("bilinear", 2), ("bicubic", 2), ("nearest", 2), ("bilinear", 3), ("nearest", 3)]
)
def test_grid_sample(mode: str, n: int, padding: str, align_corners: bool) -> None:
    x = randn(2, 3, 5, 4) if n == 2 else randn(2, 3, 4, 3, 5)
    grid = 0.8 * randn(2, *(3, 4, 2)[:n], n, seed=7)  # some points outside
    check(
        lambda x, g: F.grid_sample(x, g, mode=mode, padding_mode=padding, align_corners=align_corners),
        x,
        grid,
        rtol=1e-8,
    )


def test_grid_sample_of_a_single_pixel() -> None:
    for padding in ("zeros", "border", "reflection"):
        for align in (False, True):
            check(
                lambda x, g, p=padding, a=align: F.grid_sample(x, g, padding_mode=p, align_corners=a),
                randn(1, 2, 1, 3),
                0.5 * randn(1, 2, 2, 2),
            )


@pytest.mark.parametrize("align_corners", [False, True])
def test_affine_grid(align_corners: bool) -> None:
    check(lambda t: F.affine_grid(t, [2, 3, 4, 5], align_corners=align_corners), randn(2, 2, 3))
    check(lambda t: F.affine_grid(t, [2, 3, 4, 5, 2], align_corners=align_corners), randn(2, 3, 4))


def test_spatial_transformer() -> None:
    x = randn(2, 3, 6, 6)
    check(lambda x, t: F.grid_sample(x, F.affine_grid(t, [2, 3, 4, 4], False), align_corners=False), x, randn(2, 2, 3))


def test_shuffles() -> None:
    for lead in ((), (2,), (2, 3)):
        check(lambda x: F.pixel_shuffle(x, 2), randn(*lead, 8, 3, 2))
        check(lambda x: F.pixel_unshuffle(x, 2), randn(*lead, 2, 6, 4))
    check(lambda x: F.channel_shuffle(x, 3), randn(2, 6, 3, 2))
    check(lambda x: torch.native_channel_shuffle(x, 3), randn(2, 6, 3, 2), reverse=False)


@pytest.mark.parametrize("batched", [True, False])
def test_fold_and_unfold(batched: bool) -> None:
    x = randn(2, 3, 6, 5) if batched else randn(3, 6, 5)
    check(lambda x: F.unfold(x, (2, 3), dilation=(2, 1), padding=1, stride=(1, 2)), x)
    blocks = F.unfold(x, (2, 3), padding=1, stride=2)
    check(lambda b: F.fold(b, (6, 5), (2, 3), padding=1, stride=2), blocks)
