"""Normalisation over an example's own values, and weights written as length times direction."""

import pytest
import torch
import torch.nn.functional as F
from checks import check, directions
from torch import nn

from fwdgrad.tangents import PerExample


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_layer_norm(shape: tuple[int, ...], affine: int) -> None:
    parameters = [randn(*shape, seed=i) for i in range(affine)]
    check(lambda x, *wb: F.layer_norm(x, shape, *wb), randn(2, 5, 3, 4), *parameters)


@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("affine", [False, True])
def test_rms_norm(eps: float | None, affine: bool) -> None:
    parameters = [randn(3, 4)] if affine else []
    check(lambda x, *w: F.rms_norm(x, (3, 4), *w, eps=eps), randn(2, 3, 4), *parameters)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 3, 4)])
def test_group_norm(shape: tuple[int, ...]) -> None:
    check(lambda x: F.group_norm(x, 2), randn(*shape))
    check(lambda x, w, b: F.group_norm(x, 3, w, b), randn(*shape), randn(6), randn(6, seed=1))


def test_group_norm_channels_last() -> None:
    x = randn(2, 6, 3, 4).to(memory_format=torch.channels_last)
    check(lambda x, w, b: F.group_norm(x, 3, w, b), x, randn(6), randn(6, seed=1))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 3, 4), (2, 3, 2, 3, 2)])
def test_instance_norm(shape: tuple[int, ...]) -> None:
    check(lambda x: F.instance_norm(x), randn(*shape))
    check(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), randn(*shape), randn(3), randn(3, seed=1))
    mean, variance = randn(3), randn(3).square() + 0.5
    check(
        lambda x, w, b: F.instance_norm(x, mean, variance, w, b, use_input_stats=False),
        randn(*shape),
        randn(3),
        randn(3, seed=1),
    )


def test_instance_norm_tracks_statistics_as_a_plain_pass() -> None:
    x = randn(4, 3, 5)
    plain, dual = (nn.InstanceNorm1d(3, track_running_stats=True).double() for _ in range(2))
    plain(x)
    directions(dual, (x,), (randn(2, 4, 3, 5),))
    torch.testing.assert_close(dual.state_dict(), plain.state_dict())


def test_unbatched_instance_norm() -> None:
    check(nn.InstanceNorm2d(3).double(), randn(3, 4, 5))


def test_local_response_norm_and_normalize() -> None:
    check(lambda x: F.local_response_norm(x, 3, alpha=0.1), randn(2, 5, 4, 3))
    check(lambda x: F.local_response_norm(x, 2, alpha=0.1), randn(2, 5, 4))
    check(lambda x: F.normalize(x, dim=1), randn(2, 5, 4))
    check(lambda x: F.normalize(x, p=3, dim=0), randn(2, 5, 4))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_norm(dim: int) -> None:
    shape = [1, 1, 1]
    if dim >= 0:
        shape[dim] = (3, 4, 2)[dim]
    g = randn() if dim == -1 else randn(*shape)
    check(lambda v, g: torch._weight_norm(v, g, dim), randn(3, 4, 2), g)
    check(lambda v: torch.norm_except_dim(v, 2, dim), randn(3, 4, 2))


@pytest.mark.parametrize("layer", ["group_norm", "layer_norm"])
def test_per_example_scales(layer: str) -> None:
    """The tangent of example b is that of its own direction."""
    x = randn(3, 4, 5)
    size = 4 if layer == "group_norm" else 5
    w, b, tw, tb = randn(size), randn(size, seed=1), randn(2, 3, size), randn(2, 3, size, seed=1)

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 2, w, b) if layer == "group_norm" else F.layer_norm(x, (5,), w, b)

    kinds = [PerExample(w.shape, 2, lambda n, t=t: (t, None)) for t in (tw, tb)]
    _, (pushed,) = directions(run, (x, w, b), (None, *kinds))
    for i in range(3):
        _, (expected,) = directions(run, (x[i : i + 1], w, b), (None, tw[:, i], tb[:, i]))
        torch.testing.assert_close(pushed[:, i : i + 1], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    x, t = randn(4, 8), randn(1, 4, 8)
    for run in (
        lambda x: F.layer_norm(x, (8,)),
        lambda x: F.rms_norm(x, (8,)),
        lambda x: F.group_norm(x, 2),
    ):
        _, (expected,) = directions(run, (x,), (t,))
        _, (pushed,) = directions(run, (x.to(dtype),), (t.to(dtype),))
        assert pushed.dtype is dtype
        torch.testing.assert_close(pushed.double(), expected, rtol=0.05, atol=0.05)
