"""Matrices to differentiate functions of linear algebra at, and what turns them into those that a function expects.

PyTorch's sample inputs are often close to the identity, where wrong formulas look right; these are well apart from it.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Make = Callable[..., Tensor]


@dataclass
class Case:
    """A function and the makers of its inputs."""

    name: str
    function: Callable[..., Any]
    makers: tuple[Make, ...]
    options: dict[str, Any] = field(default_factory=dict)  # of ``checks.check``

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        return tuple(make(dtype, generator) for make in self.makers)


def general(*shape: int) -> Make:
    """Make matrices with independent normal entries."""
    return lambda dtype, generator: torch.randn(shape, dtype=dtype, generator=generator)


def regular(*shape: int) -> Make:
    """Make square matrices with a condition number of about 10 that are far from symmetric."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        A = torch.randn(shape, dtype=dtype, generator=generator)
        U, _, Vh = torch.linalg.svd(A)
        return U @ torch.diag(torch.linspace(0.4, 3.0, shape[-1]).to(dtype)) @ Vh

    return make


def singular(rank: int, *shape: int) -> Make:
    """Make matrices of a given rank."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        left = torch.randn((*shape[:-1], rank), dtype=dtype, generator=generator)
        return left @ torch.randn((*shape[:-2], rank, shape[-1]), dtype=dtype, generator=generator)

    return make


def triangular(*shape: int) -> Make:
    """Make lower triangular matrices with numbers above the diagonal, too, which nobody should read."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        A = torch.randn(shape, dtype=dtype, generator=generator)
        return A + torch.diag(torch.linspace(1.5, 3.0, shape[-1]).to(dtype))

    return make


def hermitian(A: Tensor) -> Tensor:
    return A + A.mH


def definite(A: Tensor) -> Tensor:
    """A A^H + I."""
    return A @ A.mH + torch.eye(A.shape[-1], dtype=A.dtype)


def indefinite(A: Tensor, hermitian: bool) -> Tensor:
    """Return A D A^H, or A D A^T, with signs in D that alternate: a factorisation of it needs 2x2 pivots."""
    signs = torch.tensor([1.0, -1.0], dtype=A.dtype).repeat(A.shape[-1])[: A.shape[-1]]
    return (A * signs) @ (A.mH if hermitian else A.mT)


def cholesky_factor(A: Tensor, upper: bool) -> Tensor:
    """Return a triangle of A with the real diagonal that a Cholesky factor has (LAPACK takes it for real)."""
    return with_real_diagonal(A.triu() if upper else A.tril())


def with_real_diagonal(A: Tensor) -> Tensor:
    return A.triu(1) + A.tril(-1) + (A + A.mH).triu().tril() / 2


def projectors(V: Tensor, W: Tensor | None = None) -> Tensor:
    """Return v_i w_i^H for each pair of columns: what is left of vectors without their phases."""
    return torch.einsum("...ij,...kj->...jik", V, (V if W is None else W).conj())
