"""The LDL^H factorisation of a symmetric or Hermitian matrix, as LAPACK packs it, and solutions from it.

LAPACK eliminates with 1x1 and 2x2 pivots and keeps in the lower triangle D and the columns of L, each as it was when it
was made: later row exchanges are not applied to it (``?sytrf``, ``?hetrf``). ``_Layout`` holds that bookkeeping.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.rules.linalg_solve import right_side
from fwdgrad.dual.rules.linalg_tools import columns, linalg_rule, named, solve_triangle
from fwdgrad.dual.tensor import dual, tangent


@dataclass
class _Layout:
    """How one packed factor is laid out: A[order][:, order] = L D L^H.

    Attributes:
        rows: (n, n) integers: L[i, j] is the packed factor's entry [rows[i, j], j].
        order: (n,) integers, the rows of A in the order in which they were eliminated.
        block: (n, n) booleans, the diagonal blocks of D.
    """

    rows: Tensor
    order: Tensor
    block: Tensor


def _layout(pivots: list[int]) -> tuple[list[list[int]], list[int], list[list[bool]]]:
    n = len(pivots)
    order = list(range(n))
    rows = [[i] * n for i in range(n)]
    block = [[i == j for j in range(n)] for i in range(n)]
    j = 0
    while j < n:
        width = 1 if pivots[j] > 0 else 2
        here, there = j + width - 1, abs(pivots[j]) - 1
        order[here], order[there] = order[there], order[here]
        for column in range(j):
            rows[here][column], rows[there][column] = rows[there][column], rows[here][column]
        if width == 2:
            block[j][j + 1] = block[j + 1][j] = True
        j += width
    return rows, order, block


def _layouts(pivots: Tensor) -> _Layout:
    """Return the layouts of a batch, stacked."""
    flat = [_layout(p) for p in pivots.reshape(-1, pivots.shape[-1]).tolist()]
    n = pivots.shape[-1]
    device = pivots.device
    rows = torch.tensor([f[0] for f in flat], dtype=torch.long, device=device).reshape(*pivots.shape[:-1], n, n)
    order = torch.tensor([f[1] for f in flat], dtype=torch.long, device=device).reshape(*pivots.shape[:-1], n)
    block = torch.tensor([f[2] for f in flat], dtype=torch.bool, device=device).reshape(*pivots.shape[:-1], n, n)
    return _Layout(rows, order, block)


def _adjoint(t: Tensor, hermitian: bool) -> Tensor:
    return t.mH if hermitian else t.mT


def _unpack(factor: Tensor, layout: _Layout, hermitian: bool) -> tuple[Tensor, Tensor]:
    """Return L without its unit diagonal, and D; linear in the factor, which may have a leading K."""
    lower = factor.tril()
    D = torch.where(layout.block, lower, torch.zeros_like(lower))
    below = D.tril(-1)
    D = D + _adjoint(below, hermitian)
    L = lower.take_along_dim(layout.rows.expand(lower.shape), -2)
    return torch.where(layout.block, torch.zeros_like(L), L).tril(-1), D


def _exchanged(t: Tensor, layout: _Layout, inverse: bool = False) -> Tensor:
    """Return t with rows and columns in the order of elimination, or back."""
    order = layout.order.argsort(-1) if inverse else layout.order
    return t.take_along_dim(order.unsqueeze(-1).expand(t.shape), -2).take_along_dim(
        order.unsqueeze(-2).expand(t.shape), -1
    )


def _pushed(factor: Tensor, pivots: Tensor, t: Tensor, hermitian: bool) -> Tensor:
    """P^T A P = L D L^H: M = L^-1 P^T dA P L^-H has the blocks dD on its diagonal and X D below, with dL = L X.

    It is the block form of the derivative of a Cholesky factorisation; of dA its Hermitian (symmetric) part counts.
    """
    layout = _layouts(pivots)
    L, D = _unpack(factor, layout, hermitian)
    inner = _exchanged((t + _adjoint(t, hermitian)) / 2, layout)
    inner = solve_triangle(L, inner, upper=False, unitriangular=True)
    inner = solve_triangle(_adjoint(L, hermitian), inner, upper=True, left=False, unitriangular=True)
    zero = torch.zeros_like(inner)
    tD = torch.where(layout.block, inner, zero)
    lower = torch.where(layout.block, zero, inner).tril()
    turn = columns(lambda b: torch.linalg.solve_ex(D.mT, b)[0], lower.mT).mT
    tL = turn + L @ turn
    return tD.tril() + torch.zeros_like(tL).scatter(-2, layout.rows.expand(tL.shape), tL)


@linalg_rule(torch.linalg.ldl_factor)
def ldl_factor(A: Tensor, *, hermitian: bool = False) -> Any:
    """P^T A P = L D L^H: with M = L^-1 P^T dA P L^-H, dD = blockdiag(M), dL = L lower(M) D^-1."""
    out = torch.linalg.ldl_factor(A, hermitian=hermitian)
    t = tangent(A)
    return out if t is None else named(out, LD=_pushed(out.LD, out.pivots, t, hermitian))


@linalg_rule(torch.linalg.ldl_factor_ex)
def ldl_factor_ex(A: Tensor, *, hermitian: bool = False, check_errors: bool = False) -> Any:
    """P^T A P = L D L^H: with M = L^-1 P^T dA P L^-H, dD = blockdiag(M), dL = L lower(M) D^-1."""
    out = torch.linalg.ldl_factor_ex(A, hermitian=hermitian, check_errors=check_errors)
    t = tangent(A)
    return out if t is None else named(out, LD=_pushed(out.LD, out.pivots, t, hermitian))


@linalg_rule(torch.linalg.ldl_solve)
def ldl_solve(LD: Tensor, pivots: Tensor, B: Tensor, *, hermitian: bool = False) -> Tensor:
    """X = A^-1 B: dX = A^-1 (dB - dA X), dA = P (dL D L^H + L dD L^H + L D dL^H) P^T (Giles 2008)."""
    X = torch.linalg.ldl_solve(LD, pivots, B, hermitian=hermitian)
    tLD, tB = tangent(LD), tangent(B)
    if tLD is None and tB is None:
        return X
    tA = None
    if tLD is not None:
        layout = _layouts(pivots)
        L, D = _unpack(LD, layout, hermitian)
        L = L + torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
        tL, tD = _unpack(tLD, layout, hermitian)
        half = tL @ D @ _adjoint(L, hermitian)
        tA = _exchanged(half + _adjoint(half, hermitian) + L @ tD @ _adjoint(L, hermitian), layout, inverse=True)
    t = right_side(X, tA, tB)
    return dual(X, columns(lambda b: torch.linalg.ldl_solve(LD, pivots, b, hermitian=hermitian), t))
