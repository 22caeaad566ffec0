"""Bilinear forms, cosine similarity, distances."""

import math

import pytest
import torch
import torch.nn.functional as F
from checks import check


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def test_bilinear() -> None:
    x, y, w, b = randn(2, 5, 3), randn(2, 5, 4), randn(6, 3, 4), randn(6)
    check(F.bilinear, x, y, w)
    check(F.bilinear, x, y, w, b)
    check(F.bilinear, x[0, 0], y[0, 0], w, b)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cosine_similarity(dim: int) -> None:
    check(lambda x, y: F.cosine_similarity(x, y, dim), randn(3, 4, 2), randn(3, 4, 2, seed=1))
    check(lambda x, y: F.cosine_similarity(x, y, dim), randn(3, 4, 2), randn(4, 1))


def test_cosine_similarity_of_short_vectors() -> None:
    x, y = randn(3, 4), randn(3, 4, seed=1)
    check(lambda x, y: F.cosine_similarity(x, y, 1, eps=10.0), x, y, reverse=False)


P = [1.0, 1.5, 2.0, 3.0, math.inf]


@pytest.mark.parametrize("p", P)
def test_pairwise_distance(p: float) -> None:
    check(lambda x, y: F.pairwise_distance(x, y, p), randn(5, 3), randn(5, 3, seed=1))
    check(lambda x, y: F.pairwise_distance(x, y, p, keepdim=True), randn(3), randn(2, 5, 3, seed=1))


@pytest.mark.parametrize("p", [0.0, *P])
def test_cdist(p: float) -> None:
    check(lambda x, y: torch.cdist(x, y, p), randn(4, 3), randn(5, 3))
    check(lambda x, y: torch.cdist(x, y, p), randn(2, 1, 4, 3), randn(3, 5, 3))


def test_cdist_of_equal_points_is_finite() -> None:
    x = randn(4, 3)
    for p in P:
        check(lambda x, y, p=p: torch.cdist(x, y, p), x, x.clone(), differences=False)


def test_cdist_with_a_product() -> None:
    check(lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"), randn(4, 3), randn(5, 3))


@pytest.mark.parametrize("p", P)
def test_pdist(p: float) -> None:
    check(lambda x: F.pdist(x, p), randn(5, 3))
