"""Embeddings and bags of them, with dense, low-rank and per-example directions of the table."""

import pytest
import torch
import torch.nn.functional as F
from checks import check, directions
from torch import nn

from fwdgrad.dual import jvp
from fwdgrad.tangents import LowRank, PerExample


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


INDICES = torch.tensor([[1, 2, 2, 0], [4, 2, 1, 1], [0, 3, 3, 3]])


@pytest.mark.parametrize("indices", [INDICES, INDICES[0], torch.tensor(3), INDICES.view(3, 2, 2)])
def test_embedding(indices: torch.Tensor) -> None:
    check(lambda w: F.embedding(indices, w), randn(5, 3))
    check(lambda w: F.embedding(indices, w, padding_idx=2), randn(5, 3), differences=False)
    check(lambda w: F.embedding(indices, w, padding_idx=-4), randn(5, 3), differences=False)


def test_embedding_scaled_by_frequency_has_the_derivative_of_reverse_mode() -> None:
    check(lambda w: F.embedding(INDICES, w, scale_grad_by_freq=True), randn(5, 3), differences=False)
    check(lambda w: F.embedding(INDICES, w, 2, scale_grad_by_freq=True), randn(5, 3), differences=False)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_structured_embedding(rank: int, count: int) -> None:
    tangent = LowRank(randn(count, rank, 5), randn(count, rank, 3))
    table = randn(5, 3)
    for run in (
        lambda w: F.embedding(INDICES, w),
        lambda w: F.embedding(INDICES, w, padding_idx=2),
        lambda w: F.embedding(torch.tensor(2), w),
        *[lambda w, mode=mode: F.embedding_bag(INDICES, w, mode=mode) for mode in ("sum", "mean", "max")],
        lambda w: F.embedding_bag(INDICES, w, mode="sum", per_sample_weights=randn(3, 4)),
    ):
        _, (pushed,) = directions(run, (table,), (tangent,))
        _, (expected,) = directions(run, (table,), (tangent.materialize(),))
        torch.testing.assert_close(pushed, expected)


def test_low_rank_embedding_is_not_materialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LowRank, "materialize", lambda self: pytest.fail("materialised"))
    tangent = LowRank(randn(2, 1, 5), randn(2, 1, 3))
    directions(
        lambda w: (F.embedding(INDICES, w), F.embedding_bag(INDICES, w, mode="mean")), (randn(5, 3),), (tangent,)
    )


@pytest.mark.parametrize("indices", [INDICES, INDICES[:, 0]])
def test_per_example_embedding(indices: torch.Tensor) -> None:
    left, right = randn(2, 3, 5), randn(2, 3, 4)
    tangent = PerExample(torch.Size((5, 4)), 2, lambda n: (left, right))
    _, (pushed,) = directions(lambda w: F.embedding(indices, w), (randn(5, 4),), (tangent,))
    for b in range(3):
        dense = left[:, b].unsqueeze(-1) * right[:, b].unsqueeze(1)
        torch.testing.assert_close(pushed[:, b], dense[:, indices[b]])


def test_max_norm_rescales_the_table_as_a_plain_pass() -> None:
    plain, dual = 3 * randn(5, 3), 3 * randn(5, 3)
    expected = F.embedding(INDICES, plain, max_norm=1.0)
    (value,), (pushed,) = directions(lambda w: F.embedding(INDICES, w, max_norm=1.0), (dual,), (randn(2, 5, 3),))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(dual, plain)
    torch.testing.assert_close(pushed, randn(2, 5, 3)[:, INDICES])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag(mode: str) -> None:
    flat, offsets = INDICES.reshape(-1), torch.tensor([0, 5, 5, 9])
    table = randn(5, 3)
    check(lambda w: F.embedding_bag(INDICES, w, mode=mode), table)
    check(lambda w: F.embedding_bag(flat, w, offsets, mode=mode), table)
    ends = torch.tensor([0, 5, 9, 12])
    check(lambda w: F.embedding_bag(flat, w, ends, mode=mode, include_last_offset=True), table)
    check(lambda w: F.embedding_bag(flat, w, offsets, mode=mode, padding_idx=2), table)


def test_embedding_bag_with_sample_weights() -> None:
    flat, offsets = INDICES.reshape(-1), torch.tensor([0, 5, 5, 9])
    check(lambda w, s: F.embedding_bag(flat, w, offsets, mode="sum", per_sample_weights=s), randn(5, 3), randn(12))
    check(lambda w, s: F.embedding_bag(INDICES, w, mode="sum", per_sample_weights=s), randn(5, 3), randn(3, 4))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bag_scaled_by_frequency_has_the_derivative_of_reverse_mode(mode: str) -> None:
    """Which divides by how often an index occurs; PyTorch 2.11 miscounts."""
    w, v = randn(5, 3), randn(5, 3, seed=1)
    counts = INDICES.flatten().bincount(minlength=5).clamp(min=1).unsqueeze(1)
    assert counts.max() > 1
    scaled = lambda w: F.embedding_bag(INDICES, w, mode=mode, scale_grad_by_freq=True)  # noqa: E731
    check(scaled, w, differences=False, reverse=False)
    tangents = jvp(scaled, (w,), (v,))[1]
    torch.testing.assert_close(tangents, F.embedding_bag(INDICES, v / counts, mode=mode))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(tangents, F.embedding_bag(INDICES, v / (1.001 * counts), mode=mode))


def test_one_hot_is_plain() -> None:
    check(lambda w: F.one_hot(INDICES, 5).double() @ w, randn(5, 3))


def test_bag_module_without_a_rule_of_its_own() -> None:
    bag = nn.EmbeddingBag(5, 3, mode="mean").double()
    check(lambda w: torch.func.functional_call(bag, {"weight": w}, (INDICES,)), randn(5, 3))
