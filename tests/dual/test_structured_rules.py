"""A structured direction gives the numbers of its dense form, in every layer that uses the structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import directions
from torch import Tensor

from fwdgrad import dual
from fwdgrad.dual.rules import activations
from fwdgrad.tangents import LowRank, PerExample

BATCH = 3
GENERATOR = torch.Generator().manual_seed(0)
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
SIZES, KERNEL = (7, 6, 5), (3, 2, 2)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"stride": 2, "padding": 1},
    {"stride": 3},
    {"padding": 2, "dilation": 2},
    {"groups": 2, "padding": 1, "stride": 2},
    {"padding": "same"},
    {"padding": "valid"},
)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def low_rank(count: int, rank: int, shape: tuple[int, ...]) -> LowRank:
    return LowRank(randn(count, rank, shape[0]), randn(count, rank, *shape[1:]))


def assert_dense_and_low_rank_agree(fn, inputs, tangents) -> None:
    dense = tuple(t.materialize() if isinstance(t, LowRank) else t for t in tangents)
    torch.testing.assert_close(directions(fn, inputs, tangents), directions(fn, inputs, dense))


def assert_per_example_agrees(fn, x, weight, bias, tx, tb, count) -> None:
    """Each example, alone, along its own direction as a dense one."""
    left, right = randn(count, BATCH, weight.shape[0]), randn(count, BATCH, *weight.shape[1:])
    shift = randn(count, BATCH, bias.shape[0])
    own = PerExample(weight.shape, count, lambda batch_size: (left, right))
    own_bias = PerExample(bias.shape, count, lambda batch_size: (shift, None)) if tb is None else tb
    _, (t,) = directions(fn, (x, weight, bias), (tx, own, own_bias))
    for b in range(BATCH):
        w = torch.einsum("ko,k...->ko...", left[:, b], right[:, b])
        one = None if tx is None else tx[:, b : b + 1]
        _, (expected,) = directions(fn, (x[b : b + 1], weight, bias), (one, w, shift[:, b] if tb is None else tb))
        torch.testing.assert_close(t[:, b : b + 1], expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [(BATCH, 4), (BATCH, 5, 4)])
def test_linear(count: int, shape: tuple[int, ...]) -> None:
    x, weight, bias = randn(*shape), randn(6, 4), randn(6)
    for tx in (None, randn(count, *shape)):
        for tb in (None, randn(count, 6)):
            for rank in (1, 2):
                tangents = (tx, low_rank(count, rank, (6, 4)), tb)
                assert_dense_and_low_rank_agree(F.linear, (x, weight, bias), tangents)
            assert_per_example_agrees(F.linear, x, weight, bias, tx, tb, count)


@pytest.mark.parametrize("rows", [0, 1000])  # whether primal and tangents go through a layer in one product
@pytest.mark.parametrize("count", [1, 3])
def test_a_stack_of_layers(monkeypatch, rows: int, count: int) -> None:
    monkeypatch.setattr(activations, "_ROWS", rows)
    monkeypatch.setattr(activations, "_LARGE", 0)
    shapes = ((6, 4), (5, 6), (2, 5))

    def fn(x, *parameters):
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            x = F.linear(F.relu(x), weight, bias)
        return x

    inputs = [randn(BATCH, 4)]
    tangents: list[Any] = [None]
    for shape in shapes:
        inputs += [randn(*shape), randn(shape[0])]
        tangents += [low_rank(count, 1, shape), randn(count, shape[0])]
    assert_dense_and_low_rank_agree(fn, tuple(inputs), tuple(tangents))


def layouts(x: Tensor, tx: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The same input and tangents, contiguous and, for images, channels last."""
    if x.dim() != 4:
        return [(x, tx)]
    last = tx.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, tx.shape[:2])
    return [(x, tx), (x.contiguous(memory_format=torch.channels_last), last)]


@pytest.mark.filterwarnings("ignore:Using padding=:UserWarning")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_convolution(spatial: int, options: dict[str, Any]) -> None:
    shape = (6, 4 // options.get("groups", 1), *KERNEL[:spatial])
    weight, bias, count = randn(*shape), randn(6), 2

    def fn(x, weight, bias):
        return CONVOLUTIONS[spatial - 1](x, weight, bias, **options)

    for x, tx in layouts(randn(BATCH, 4, *SIZES[:spatial]), randn(count, BATCH, 4, *SIZES[:spatial])):
        for given in (None, tx):
            for tb in (None, randn(count, 6)):
                for rank in (1, 2):
                    tangents = (given, low_rank(count, rank, shape), tb)
                    assert_dense_and_low_rank_agree(fn, (x, weight, bias), tangents)
                assert_per_example_agrees(fn, x, weight, bias, given, tb, count)
            unbatched = None if given is None else given[:, 0]
            assert_dense_and_low_rank_agree(fn, (x[0], weight, bias), (unbatched, low_rank(count, 1, shape), None))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"groups": 2}], ids=str)
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_transposed_convolution(spatial: int, options: dict[str, Any]) -> None:
    groups = options.get("groups", 1)
    shape = (4, 6 // groups, *KERNEL[:spatial])
    x, weight, bias, count = randn(BATCH, 4, *SIZES[:spatial]), randn(*shape), randn(6), 2

    def fn(x, weight, bias):
        return TRANSPOSED[spatial - 1](x, weight, bias, **options)

    for tx in (None, randn(count, *x.shape)):
        for rank in (1, 2):
            tangents = (tx, low_rank(count, rank, shape), randn(count, 6))
            assert_dense_and_low_rank_agree(fn, (x, weight, bias), tangents)
        if groups == 1:
            assert_per_example_agrees(fn, x, weight, bias, tx, randn(count, 6), count)


@pytest.mark.parametrize("function", [lambda x, w: x @ w.t(), lambda x, w: x * w.sum(), torch.cdist])
def test_a_low_rank_direction_is_materialised_where_its_structure_is_of_no_use(function) -> None:
    assert_dense_and_low_rank_agree(function, (randn(5, 4), randn(3, 4)), (None, low_rank(2, 2, (3, 4))))


def test_a_per_example_direction_is_refused_by_name_where_it_has_no_meaning() -> None:
    own = PerExample(torch.Size((3, 4)), 1, lambda batch_size: (randn(1, 5, 3), randn(1, 5, 4)))
    with pytest.raises(dual.DualError, match=r"Tensor\.exp: a per-example direction .* \(3, 4\)\) is not supported"):
        directions(lambda w: w.exp(), (randn(3, 4),), (own,))
    with pytest.raises(ValueError, match="drawn for 5 examples and are now applied to 2"):
        directions(F.linear, (randn(2, 4), randn(3, 4)), (None, own))
