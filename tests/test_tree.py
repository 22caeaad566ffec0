"""Arithmetic on dicts is arithmetic on the one long vector that they spell."""

import torch
from samples import flatten, random

from fwdgrad import tree

A = {"w": random(2, 3), "b": random(3, seed=1), "s": random(seed=2), "empty": random(0, 2)}
B = {name: value * 3 - 1 for name, value in A.items()}


def test_dot_is_the_inner_product_of_the_long_vectors() -> None:
    torch.testing.assert_close(tree.dot(A, B), flatten(A) @ flatten(B))


def test_dot_matches_by_name_not_by_order() -> None:
    torch.testing.assert_close(tree.dot(A, dict(reversed(B.items()))), tree.dot(A, B))


def test_norm_is_that_of_the_long_vector() -> None:
    torch.testing.assert_close(tree.norm(A), flatten(A).norm())
    torch.testing.assert_close(tree.norm(A).square(), tree.dot(A, A))


def test_scale_and_add_make_new_dicts() -> None:
    before = flatten(A)
    torch.testing.assert_close(flatten(tree.scale(A, 2.0)), 2 * before)
    torch.testing.assert_close(flatten(tree.add(A, B)), before + flatten(B))
    torch.testing.assert_close(flatten(tree.add(A, B, torch.tensor(-0.5))), before - 0.5 * flatten(B))
    assert torch.equal(flatten(A), before)
