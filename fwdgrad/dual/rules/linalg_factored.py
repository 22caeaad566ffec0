"""Solutions from factors that are given: of Cholesky and of LU, whose tangents become that of the matrix they make."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.rules.linalg_solve import right_side
from fwdgrad.dual.rules.linalg_tools import columns, linalg_rule, named, solve_lu, triangle
from fwdgrad.dual.tensor import dual, tangent


def _gram(L: Tensor, tL: Tensor, upper: bool) -> Tensor:
    """Return the tangents of A = L L^H, or U^H U, of which only the triangle is read: dA = dL L^H + L dL^H."""
    L, tL = triangle(L, upper), triangle(tL, upper)
    product = tL.mH @ L if upper else tL @ L.mH
    return product + product.mH


@linalg_rule(torch.cholesky_solve)
def cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """X = A^-1 B with A = L L^H: dX = A^-1 (dB - dA X), dA = dL L^H + L dL^H (Giles 2008)."""
    X = torch.cholesky_solve(B, L, upper)
    tB, tL = tangent(B), tangent(L)
    if tB is None and tL is None:
        return X
    t = right_side(X, None if tL is None else _gram(L, tL, upper), tB)
    return dual(X, columns(lambda b: torch.cholesky_solve(b, L, upper), t))


@linalg_rule(torch.cholesky_inverse)
def cholesky_inverse(L: Tensor, upper: bool = False) -> Tensor:
    """C = A^-1 with A = L L^H: dC = -C (dL L^H + L dL^H) C (Giles 2008)."""
    C = torch.cholesky_inverse(L, upper)
    t = tangent(L)
    return C if t is None else dual(C, -(C @ _gram(L, t, upper) @ C))


def permuted(t: Tensor, P: Tensor, inverse: bool = False) -> Tensor:
    """Return P^T t, or P t for ``inverse``, by moving rows; an empty P is that of a factorisation without pivots."""
    if P.numel() == 0:
        return t
    order = (P.real if P.is_complex() else P).argmax(-1 if inverse else -2)
    return t.take_along_dim(order.unsqueeze(-1).unsqueeze(0), -2)


def _lu_tangents(factor: Tensor, pivots: Tensor, t: Tensor) -> Tensor:
    """Return the tangents of A = P L U, of which the factor holds L below the diagonal: dA = P (dL U + L dU)."""
    P, L, U = torch.lu_unpack(factor, pivots)
    return permuted(t.tril(-1) @ U + L @ t.triu(), P, inverse=True)


@linalg_rule(torch.linalg.lu_solve)
def lu_solve(
    LU: Tensor,
    pivots: Tensor,
    B: Tensor,
    *,
    left: bool = True,
    adjoint: bool = False,
) -> Tensor:
    """X = op(A)^-1 B with A = P L U: dX = op(A)^-1 (dB - op(dA) X), op(A) = A or A^H; X op(A) = B alike."""
    X = torch.linalg.lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
    tLU, tB = tangent(LU), tangent(B)
    if tLU is None and tB is None:
        return X
    tA = None if tLU is None else _lu_tangents(LU, pivots, tLU)
    t = right_side(X, tA.mH if tA is not None and adjoint else tA, tB, left)
    return dual(X, solve_lu(LU, pivots, t, left=left, adjoint=adjoint))


@linalg_rule(torch.lu_solve)
def lu_solve_data(b: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    """X = A^-1 B with A = P L U: dX = A^-1 (dB - dA X)."""
    return lu_solve(LU_data, LU_pivots, b)


@linalg_rule(torch.lu_unpack)
def lu_unpack(LU_data: Tensor, LU_pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True) -> Any:
    """L = I + tril(F, -1) and U = triu(F), linear in the factor F: dL = tril(dF, -1), dU = triu(dF)."""
    out = torch.lu_unpack(LU_data, LU_pivots, unpack_data, unpack_pivots)
    t = tangent(LU_data)
    if t is None or not unpack_data:
        return out
    k = min(t.shape[-2:])
    return named(out, L=t[..., :k].tril(-1), U=t[..., :k, :].triu())
