"""Inverses and solutions of linear systems: one factorisation of the primal serves all K tangents.

Formulas: M. B. Giles, "An extended collection of matrix derivative results for forward and reverse mode automatic
differentiation" (2008), which hold for complex matrices as they stand.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, composite
from fwdgrad.dual.rules.linalg_tools import is_vector, linalg_rule, named, solve_lu, solve_triangle, triangle
from fwdgrad.dual.tensor import dual, tangent


@linalg_rule(torch.linalg.inv, torch.inverse)
def inv(A: Tensor) -> Tensor:
    """C = A^-1: dC = -C dA C (Giles 2008)."""
    C = torch.linalg.inv(A)
    t = tangent(A)
    return C if t is None else dual(C, -(C @ t @ C))


@linalg_rule(torch.linalg.inv_ex)
def inv_ex(A: Tensor, *, check_errors: bool = False) -> Any:
    """C = A^-1: dC = -C dA C (Giles 2008)."""
    out = torch.linalg.inv_ex(A, check_errors=check_errors)
    t = tangent(A)
    return out if t is None else named(out, inverse=-(out.inverse @ t @ out.inverse))


@linalg_rule(torch.linalg.solve)
def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """A X = B: dX = A^-1 (dB - dA X); X A = B: dX = (dB - X dA) A^-1 (Giles 2008)."""
    tA, tB = tangent(A), tangent(B)
    if tA is None and tB is None:
        return torch.linalg.solve(A, B, left=left)
    factor, pivots, info = torch.linalg.lu_factor_ex(A)
    if bool(info.any()):
        torch.linalg.solve(A, B, left=left)  # raises, as it does without tangents
    return dual(*_solved(factor, pivots, A, B, left, tA, tB))


@linalg_rule(torch.linalg.solve_ex)
def solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
    """A X = B: dX = A^-1 (dB - dA X); X A = B: dX = (dB - X dA) A^-1 (Giles 2008)."""
    out = torch.linalg.solve_ex(A, B, left=left, check_errors=check_errors)
    tA, tB = tangent(A), tangent(B)
    if tA is None and tB is None:
        return out
    factor, pivots, _ = torch.linalg.lu_factor_ex(A)
    return named(out, result=_solved(factor, pivots, A, B, left, tA, tB)[1])


def _solved(
    factor: Tensor,
    pivots: Tensor,
    A: Tensor,
    B: Tensor,
    left: bool,
    tA: Tensor | None,
    tB: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return X and its tangents, from the factorisation of A."""
    vector = is_vector(A, B)
    X = torch.linalg.lu_solve(factor, pivots, B.unsqueeze(-1) if vector else B, left=left)
    if vector and tB is not None:
        tB = tB.unsqueeze(-1)
    t = right_side(X, tA, tB, left)
    t = solve_lu(factor, pivots, t, left=left)
    return (X.squeeze(-1), t.squeeze(-1)) if vector else (X, t)


def right_side(X: Tensor, tA: Tensor | None, tB: Tensor | None, left: bool = True) -> Tensor:
    """Return dB - dA X, or dB - X dA: what the solution's tangent is solved from."""
    if tB is not None:
        tB = align(tB, X.dim())
        if tA is None:
            return tB
    assert tA is not None
    tA = align(tA, X.dim())
    product = tA @ X if left else X @ tA
    return -product if tB is None else tB - product


@linalg_rule(torch.linalg.solve_triangular)
def solve_triangular(
    A: Tensor,
    B: Tensor,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Tensor:
    """A X = B: dX = A^-1 (dB - tri(dA) X), with the triangle of dA that is read of A (Giles 2008)."""
    flags = {"upper": upper, "left": left, "unitriangular": unitriangular}
    X = torch.linalg.solve_triangular(A, B, **flags)
    tA, tB = tangent(A), tangent(B)
    if tA is None and tB is None:
        return X
    read = None if tA is None else triangle(tA, upper, unitriangular)
    return dual(X, solve_triangle(A, right_side(X, read, tB, left), **flags))


@linalg_rule(torch.triangular_solve)
def triangular_solve(
    b: Tensor,
    A: Tensor,
    upper: bool = True,
    transpose: bool = False,
    unitriangular: bool = False,
) -> Any:
    """op(A) X = B: dX = op(A)^-1 (dB - op(tri(dA)) X), with op(A) = A or A^T, never conjugated (Giles 2008)."""
    out = torch.triangular_solve(b, A, upper, transpose, unitriangular)
    tA, tB = tangent(A), tangent(b)
    if tA is None and tB is None:
        return out
    X = out.solution
    read = copied = None
    if tA is not None:
        read = triangle(tA, upper, unitriangular)
        read = read.mT if transpose else read
        copied = align(tA, X.dim()).expand(tA.shape[0], *out.cloned_coefficient.shape).clone()
    t = right_side(X, read, tB)
    operator = A.mT if transpose else A
    t = solve_triangle(operator, t, upper=upper != transpose, unitriangular=unitriangular)
    return named(out, solution=t, cloned_coefficient=copied)


@composite(torch.linalg.tensorinv)
def tensorinv(A: Tensor, ind: int = 2) -> Tensor:
    """Write the inverse of A as a map from its last dimensions to its first ``ind``."""
    first, last = A.shape[:ind], A.shape[ind:]
    return torch.linalg.inv(A.reshape(math.prod(first), math.prod(last))).reshape(*last, *first)


@composite(torch.linalg.tensorsolve)
def tensorsolve(A: Tensor, B: Tensor, dims: Any = None) -> Tensor:
    """Write the X with tensordot(A, X) = B, after ``dims`` of A went last."""
    if dims is not None:
        A = A.movedim(tuple(dims), tuple(range(A.dim() - len(dims), A.dim())))
    shape = A.shape[B.dim() :]
    return torch.linalg.solve(A.reshape(-1, math.prod(shape)), B.reshape(-1)).reshape(shape)
