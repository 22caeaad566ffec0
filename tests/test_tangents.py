"""Every kind of tangent answers the same questions with the same numbers as the plain tensors it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from samples import random
from torch import Tensor

from fwdgrad.tangents import Dense, LowRank, PerExample, Tangent

K, B = 3, 5

SHARED: dict[str, Callable[[], Tangent]] = {
    "dense matrix": lambda: Dense(random(K, 4, 6)),
    "dense vector": lambda: Dense(random(K, 4)),
    "dense scalar": lambda: Dense(random(K)),
    "dense without entries": lambda: Dense(random(K, 0, 4)),
    "dense, one direction": lambda: Dense(random(1, 4, 6)),
    "rank 1 matrix": lambda: LowRank(random(K, 1, 4), random(K, 1, 6, seed=1)),
    "rank 1 matrix, one direction": lambda: LowRank(random(1, 1, 4), random(1, 1, 6, seed=1)),
    "rank 2 matrix": lambda: LowRank(random(K, 2, 4), random(K, 2, 6, seed=1)),
    "rank 1 convolution": lambda: LowRank(random(K, 1, 4), random(K, 1, 2, 3, 3, seed=1)),
    "rank 1 convolution, one direction": lambda: LowRank(random(1, 1, 4), random(1, 1, 2, 3, 3, seed=1)),
    "rank 2 convolution": lambda: LowRank(random(K, 2, 4), random(K, 2, 2, 3, 3, seed=1)),
}
every_shared = pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x,
    "every second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2] if x.dim() else x,
}


@every_shared
def test_shape_and_number_are_those_of_the_vectors(make: Callable[[], Tangent]) -> None:
    tangent = make()
    assert tangent.materialize().shape == (tangent.num_directions, *tangent.shape)


@every_shared
def test_dot_is_the_inner_product_with_each_vector(make: Callable[[], Tangent]) -> None:
    tangent = make()
    other = random(*tangent.shape, seed=2)
    expected = torch.stack([(vector * other).sum() for vector in tangent.materialize()])
    for layout in LAYOUTS.values():
        torch.testing.assert_close(tangent.dot(layout(other)), expected)


@every_shared
def test_gram_holds_the_inner_products_of_the_vectors(make: Callable[[], Tangent]) -> None:
    tangent = make()
    vectors = tangent.materialize()
    expected = torch.stack([torch.stack([(a * b).sum() for b in vectors]) for a in vectors])
    torch.testing.assert_close(tangent.gram(), expected)


@every_shared
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_add_adds_the_weighted_sum_of_the_vectors_in_place(
    make: Callable[[], Tangent], layout: Callable[[Tensor], Tensor]
) -> None:
    tangent, alpha = make(), random(K, seed=3)[: make().num_directions]
    start = random(*tangent.shape, seed=4)
    target = layout(start.clone())
    strides, address = target.stride(), target.data_ptr()
    tangent.add_to_(target, alpha)
    expected = start + sum(a * vector for a, vector in zip(alpha, tangent.materialize(), strict=True))
    torch.testing.assert_close(target, expected)
    assert (target.stride(), target.data_ptr()) == (strides, address)


@every_shared
def test_add_leaves_the_tangent_as_it_is(make: Callable[[], Tangent]) -> None:
    tangent = make()
    before = tangent.materialize().clone()
    tangent.add_to_(torch.zeros(tangent.shape, dtype=torch.float64), torch.ones(tangent.num_directions))
    assert torch.equal(tangent.materialize(), before)


@every_shared
def test_add_converts_coefficients_and_vectors_to_the_target(make: Callable[[], Tangent]) -> None:
    tangent = make()
    if isinstance(tangent, Dense):
        tangent = Dense(tangent.values.float())
    else:
        tangent = LowRank(tangent.left.float(), tangent.right.float())
    target = torch.zeros(tangent.shape)
    tangent.add_to_(target, torch.ones(tangent.num_directions, dtype=torch.float64))
    torch.testing.assert_close(target, tangent.materialize().sum(0))


@every_shared
@pytest.mark.parametrize("shape", [(K + 1,), (), (1, K)])
def test_add_refuses_coefficients_of_another_shape(make: Callable[[], Tangent], shape: tuple[int, ...]) -> None:
    tangent = make()
    expected = rf"alpha must have shape \({tangent.num_directions},\), got {str(shape).replace('(', '[(]', 1)[:-1]}"
    with pytest.raises(ValueError, match=expected):
        tangent.add_to_(torch.zeros(tangent.shape), torch.zeros(shape))


def per_example(*shape: int, calls: list[int] | None = None) -> PerExample:
    def draw(batch_size: int) -> tuple[Tensor, Tensor | None]:
        if calls is not None:
            calls.append(batch_size)
        right = random(K, batch_size, *shape[1:], seed=1) if len(shape) > 1 else None
        return random(K, batch_size, *shape[:1]), right

    return PerExample(torch.Size(shape), K, draw)


def vectors_of(tangent: PerExample) -> Tensor:
    """Return the vectors of all examples, shape (K, B, *shape)."""
    left, right = tangent.factors(B)
    if right is None:
        return left
    return (left.unsqueeze(-1) * right.flatten(2).unsqueeze(-2)).view(K, B, *tangent.shape)


every_shape = pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 2, 3, 3)], ids=["vector", "matrix", "convolution"])


@every_shape
def test_per_example_dot_is_the_inner_product_with_each_vector_of_each_example(shape: tuple[int, ...]) -> None:
    tangent, other = per_example(*shape), random(*shape, seed=2)
    expected = (vectors_of(tangent) * other).flatten(2).sum(2)
    torch.testing.assert_close(tangent.dot(other), expected)


@every_shape
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_per_example_add_adds_the_weighted_sum_over_directions_and_examples(
    shape: tuple[int, ...], layout: Callable[[Tensor], Tensor]
) -> None:
    tangent, alpha = per_example(*shape), random(K, B, seed=3)
    expected = random(*shape, seed=4) + torch.tensordot(alpha, vectors_of(tangent), dims=2)
    target = layout(random(*shape, seed=4))
    tangent.add_to_(target, alpha)
    torch.testing.assert_close(target, expected)


def test_per_example_vectors_are_drawn_once() -> None:
    calls: list[int] = []
    tangent = per_example(4, 6, calls=calls)
    assert tangent.factors(B)[0] is tangent.factors(B)[0]
    assert calls == [B]


def test_per_example_refuses_a_second_batch_size() -> None:
    tangent = per_example(4, 6)
    tangent.factors(B)
    with pytest.raises(
        ValueError, match=r"drawn for 5 examples and are now applied to 7; the first dimension of every"
    ):
        tangent.factors(7)


def test_per_example_refuses_coefficients_without_the_batch() -> None:
    tangent = per_example(4, 6)
    tangent.factors(B)
    with pytest.raises(ValueError, match=r"alpha must have shape \(3, 5\), got \(3,\)"):
        tangent.add_to_(torch.zeros(4, 6), torch.zeros(K))


@pytest.mark.parametrize("use", [lambda t: t.dot(torch.zeros(4, 6)), lambda t: t.add_to_(torch.zeros(4, 6), None)])
def test_per_example_refuses_to_be_read_before_it_was_used(use: Callable[[PerExample], object]) -> None:
    with pytest.raises(RuntimeError, match="never used: its parameter took no part in the loss"):
        use(per_example(4, 6))


def test_per_example_has_no_single_tensor_and_no_single_gram_matrix() -> None:
    tangent = per_example(4, 6)
    with pytest.raises(TypeError, match="use engine='dual', or a shared direction such as direction='low_rank'"):
        tangent.materialize()
    with pytest.raises(TypeError, match="one Gram matrix per example"):
        tangent.gram()


def test_checks_of_dot_and_gram_notice_an_error_of_a_thousandth() -> None:
    tangent = LowRank(random(K, 1, 4), random(K, 1, 6, seed=1))
    wrong = LowRank(tangent.left * math.sqrt(1.001), tangent.right)
    other = random(4, 6, seed=2)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong.dot(other), tangent.dot(other))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong.gram(), tangent.gram())
