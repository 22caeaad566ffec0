"""Directions in blocks: every operation gives what it gives for the same directions written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwdgrad.dual import Blocks, DualError, even_blocks, keeps_blocks, perturb, perturbed

Chain = Callable[[Tensor], Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


W, W2, SMALL = randn(5, 12, seed=1), randn(4, 5, seed=2), randn(4, 48, seed=3)
KERNEL, BIAS = randn(7, 12, 3, 3, seed=4), randn(7, seed=5)


def in_place(x: Tensor) -> Tensor:
    x = x.flatten(1)
    F.relu(x, inplace=True)
    return F.linear(x.mul_(2), W)


def flat_then_written(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    x.mul_(3)  # moves what flat shows
    return flat.sum(1)


MATRICES: dict[str, Chain] = {
    "linear": lambda x: F.linear(x, W, randn(5)),
    "linear without bias": lambda x: F.linear(x, W),
    "relu, linear": lambda x: F.linear(F.relu(x), W),
    "relu twice": lambda x: F.linear(F.relu(F.relu(x)), W),
    "relu read twice": lambda x: F.linear(y := F.relu(x), W).sum(1) + y.square().sum(1),
    "relu in place": in_place,
    "two layers": lambda x: F.linear(F.relu(F.linear(F.relu(x), W)), W2),
    "a vector for a weight": lambda x: F.linear(x, W[0]),
    "other activation functions": lambda x: F.linear(F.gelu(torch.tanh(x)).exp(), W),
    "dropout": lambda x: F.linear(F.dropout(F.relu(x), 0.4), W),
    "no dropout": lambda x: F.linear(F.dropout(x, 0.4, training=False), W),
    "no rule for blocks": lambda x: torch.tanh(x).cumsum(1),
    "a residual": lambda x: F.relu(x) + x,
    "an expansion": lambda x: F.linear(x.expand(3, *x.shape), W),
    "a weight made of it": lambda x: F.linear(randn(2, 12), x),
}
IMAGES: dict[str, Chain] = {
    "convolution": lambda x: torch.conv2d(x, KERNEL, BIAS),
    "convolution with geometry": lambda x: torch.conv2d(F.relu(x), KERNEL, None, (2, 1), (0, 1), (1, 2)),
    "convolution of three dimensions": lambda x: torch.conv3d(x.unsqueeze(2), KERNEL.unsqueeze(2)),
    "grouped convolution": lambda x: torch.conv2d(x, randn(6, 6, 2, 2), None, 1, 0, 1, 2),
    "convolution of padding by name": lambda x: torch.conv2d(x, KERNEL, None, 1, "same"),
    "flatten": lambda x: F.linear(F.relu(x).flatten(1), randn(3, x.shape[1:].numel())),
    "view": lambda x: F.linear(x.view(len(x), -1), randn(3, x.shape[1:].numel())),
    "reshape otherwise": lambda x: x.reshape(-1, 12),
    "written behind a view": flat_then_written,
    "channels last": lambda x: F.linear(
        F.relu(x.contiguous(memory_format=torch.channels_last)).flatten(1), randn(3, 192)
    ),
    "pooling": lambda x: F.max_pool2d(F.relu(x), 2),
    "pooling, convolution": lambda x: torch.conv2d(F.max_pool2d(x, 2, 1), KERNEL),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, convolution": lambda x: torch.conv2d(F.avg_pool2d(F.relu(x), 2, 1, 1), KERNEL),
    "average of all, linear": lambda x: F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), randn(3, 12)),
    "average of one dimension": lambda x: F.avg_pool1d(x.flatten(2), 4),
    "average of three dimensions": lambda x: F.adaptive_avg_pool3d(x.unsqueeze(2), (1, 2, 1)),
}


def push(chain: Chain, x: Tensor, blocks: Blocks, written_out: bool, earlier: bool) -> Tensor:
    """Return the tangents of ``chain(x)`` along blocks, or the same directions written out."""
    torch.manual_seed(0)

    def fn() -> tuple[Tensor, None]:
        y = perturb(x, randn(2, *x.shape, seed=9)) if earlier else x
        return chain(perturb(y, blocks.materialize() if written_out else blocks)), None

    return perturbed(fn)[1]


def check(chain: Chain, x: Tensor, size: int, earlier: bool, wrong: float = 1.0) -> None:
    values = randn(*x.shape, seed=7)
    actual = push(chain, x, Blocks(values * wrong, size), False, earlier)
    expected = push(chain, x, Blocks(values, size), True, earlier)
    assert len(actual) == -(-x[0].numel() // size) + 2 * earlier
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "behind others"])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name: str, size: int, earlier: bool) -> None:
    check(MATRICES[name], randn(3, 12), size, earlier)


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "behind others"])
@pytest.mark.parametrize("size", [7, 16, 48, 80, 192], ids=lambda size: f"{size / 16:.2f} channels")
@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, size: int, earlier: bool) -> None:
    check(IMAGES[name], randn(2, 12, 4, 4), size, earlier)


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "behind others"])
def test_one_entry(earlier: bool) -> None:
    check(lambda x: F.linear(x.expand(3, 12), W), randn(3, 1), 1, earlier)


@pytest.mark.parametrize(("shape", "size"), [((3,), 1), ((3, 12), 0)])
def test_blocks_of_nothing_are_refused(shape: tuple[int, ...], size: int) -> None:
    message = rf"values of shape \(B, \.\.\.\) and a size of at least 1, got shape \({shape[0]},.*and size {size}"
    with pytest.raises(ValueError, match=message):
        Blocks(randn(*shape), size)


@pytest.mark.parametrize("chain", [MATRICES["relu, linear"], MATRICES["no rule for blocks"]])
def test_blocks_off_by_a_thousandth_are_noticed(chain: Chain) -> None:
    with pytest.raises(AssertionError):
        check(chain, randn(3, 12), 3, True, wrong=1.001)


def test_large_masks_wait_and_are_right() -> None:
    check(lambda x: F.linear(F.relu(F.linear(F.relu(x), randn(600, 12))), randn(2, 600)), randn(80, 12), 3, True)


def test_under_autocast() -> None:
    def chain(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(F.relu(x), W.float()).float()

    x, values = randn(3, 12).float(), randn(3, 12, seed=7).float()
    results = [push(chain, x, Blocks(values, 3), written_out, False) for written_out in (False, True)]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("entries", "count", "expected"),
    [
        (12, 4, (4, 3)),
        (12, 5, (4, 3)),
        (12, 7, (6, 2)),
        (12, 12, (12, 1)),
        (12, 99, (12, 1)),
        (10, 4, (4, 3)),
        (1, 8, (1, 1)),
    ],
)
def test_even_blocks(entries: int, count: int, expected: tuple[int, int]) -> None:
    assert even_blocks(entries, count) == expected


@pytest.mark.parametrize(
    ("chain", "size", "expected"),
    [
        ("flatten", 7, True),
        ("convolution", 32, True),
        ("convolution", 7, False),
        ("convolution", 5 * 16, False),  # 12 channels are not so many blocks of 5
        ("pooling, convolution", 16, True),
        ("pooling, convolution", 8, False),
        ("average, convolution", 16, True),
        ("average, convolution", 8, False),
        ("average of all, linear", 48, True),
        ("written behind a view", 16, False),
    ],
)
def test_it_is_known_which_chains_keep_blocks(chain: str, size: int, expected: bool) -> None:
    x = randn(2, 12, 4, 4)
    assert keeps_blocks(lambda: (IMAGES[chain](perturb(x, Blocks(x, size))), None)) == expected


def test_a_result_written_behind_its_back_is_refused() -> None:
    def fn() -> tuple[Tensor, None]:
        y = F.relu(perturb(perturb(x, torch.ones(1, *x.shape, dtype=x.dtype)), Blocks(x, 3)))
        with torch.no_grad():
            y.mul_(2)
        return nn.Linear(12, 2).double()(y), None

    x = randn(3, 12)
    with pytest.raises(DualError, match="changed in place under no_grad"):
        perturbed(fn)
