"""Eigenvalues and eigenvectors.

An eigenvector is determined up to a phase, and up to a rotation among those of equal values. The tangents here are
PyTorch's: those of ``eigh`` move orthogonally to themselves, those of ``eig`` keep their norm. A loss has a derivative
where it does not depend on that choice. Where values are equal a warning tells that their vectors have none.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.rules.linalg_tools import columns, dagger_part, gaps, inverse_or_nan, linalg_rule, named
from fwdgrad.dual.tensor import dual, tangent


def _diagonal(t: Tensor) -> Tensor:
    return t.diagonal(dim1=-2, dim2=-1)


@linalg_rule(torch.linalg.eigh)
def eigh(A: Tensor, UPLO: str = "L") -> Any:
    """A V = V diag(l): M = V^H dA V, dl = diag(M), dV = V (M_ij / (l_j - l_i)), 0 on the diagonal (Giles 2008)."""
    out = torch.linalg.eigh(A, UPLO=UPLO)
    t = tangent(A)
    if t is None:
        return out
    V = out.eigenvectors
    inner = V.mH @ dagger_part(t) @ V
    values = _diagonal(inner)
    values = values.real if inner.is_complex() else values
    inner = inner / gaps(out.eigenvalues, "torch.linalg.eigh: the matrix")
    _diagonal(inner).zero_()
    return named(out, eigenvalues=values, eigenvectors=V @ inner)


@linalg_rule(torch.linalg.eigvalsh)
def eigvalsh(A: Tensor, UPLO: str = "L") -> Tensor:
    """A V = V diag(l): dl = diag(V^H dA V) (Giles 2008)."""
    t = tangent(A)
    if t is None:
        return torch.linalg.eigvalsh(A, UPLO=UPLO)
    values, V = torch.linalg.eigh(A, UPLO=UPLO)
    product = V.conj() * (dagger_part(t) @ V)
    return dual(values, product.sum(-2).real if product.is_complex() else product.sum(-2))


@linalg_rule(torch.linalg.eig)
def eig(A: Tensor) -> Any:
    """A V = V diag(l): M = V^-1 dA V, dl = diag(M), W_ij = M_ij / (l_j - l_i), dV = V W - V Re diag(V^H V W) (Giles).

    The second term keeps the columns of V at norm one (C. Boeddeker et al. 2017, arXiv:1701.00392).
    """
    out = torch.linalg.eig(A)
    t = tangent(A)
    if t is None:
        return out
    V = out.eigenvectors
    inner = columns(lambda b: torch.linalg.solve_ex(V, b)[0], t.to(V.dtype) @ V)
    values = _diagonal(inner)
    inner = inner / gaps(out.eigenvalues, "torch.linalg.eig: the matrix")
    _diagonal(inner).zero_()
    moved = V @ inner
    growth = (V.conj() * moved).sum(-2, keepdim=True).real
    return named(out, eigenvalues=values, eigenvectors=moved - V * growth)


@linalg_rule(torch.linalg.eigvals)
def eigvals(A: Tensor) -> Tensor:
    """A V = V diag(l): dl = diag(V^-1 dA V) (Giles 2008)."""
    t = tangent(A)
    if t is None:
        return torch.linalg.eigvals(A)
    values, V = torch.linalg.eig(A)
    return dual(values, (inverse_or_nan(V).mT * (t.to(V.dtype) @ V)).sum(-2))
