"""The triangular decompositions: Cholesky, LU (S. Axen 2021, "Differentiating the LU decomposition") and QR."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fwdgrad.dual.rules.linalg_factored import permuted
from fwdgrad.dual.rules.linalg_reflectors import geqrf, householder_product
from fwdgrad.dual.rules.linalg_tools import dagger_part, half_lower, linalg_rule, named, solve_triangle
from fwdgrad.dual.tensor import dual, tangent


def _cholesky(L: Tensor, t: Tensor, upper: bool) -> Tensor:
    """A = L L^H: dL = L half_lower(L^-1 dA L^-H), of the Hermitian part of dA (I. Murray 2016, arXiv:1602.07527)."""
    if upper:
        L = L.mH
    inner = solve_triangle(L, dagger_part(t), upper=False)
    inner = solve_triangle(L.mH, inner, upper=True, left=False)
    pushed = L @ half_lower(inner)
    return pushed.mH if upper else pushed


@linalg_rule(torch.linalg.cholesky)
def cholesky(A: Tensor, *, upper: bool = False) -> Tensor:
    """A = L L^H: dL = L half_lower(L^-1 dA L^-H) (Giles 2008; Murray 2016, arXiv:1602.07527)."""
    L = torch.linalg.cholesky(A, upper=upper)
    t = tangent(A)
    return L if t is None else dual(L, _cholesky(L, t, upper))


@linalg_rule(torch.linalg.cholesky_ex)
def cholesky_ex(A: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    """A = L L^H: dL = L half_lower(L^-1 dA L^-H) (Giles 2008; Murray 2016, arXiv:1602.07527)."""
    out = torch.linalg.cholesky_ex(A, upper=upper, check_errors=check_errors)
    t = tangent(A)
    return out if t is None else named(out, L=_cholesky(out.L, t, upper))


def _torch_cholesky(input: Tensor, upper: bool = False) -> Tensor:
    """A = L L^H: dL = L half_lower(L^-1 dA L^-H) (Giles 2008; Murray 2016, arXiv:1602.07527)."""
    return cholesky(input, upper=upper)


if type(torch.cholesky) is type(torch.inverse):  # later versions have only a message in its place
    linalg_rule(torch.cholesky)(_torch_cholesky)


def _lu(P: Tensor, L: Tensor, U: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A = P L U: with F = L1^-1 (P^T dA)_11 U1^-1, dL1 = L1 tril(F, -1) and dU1 = triu(F) U1, 1 the leading square."""
    t = permuted(t, P)
    k = L.shape[-1]
    L1, L2, U1, U2 = L[..., :k, :], L[..., k:, :], U[..., :k], U[..., k:]
    scaled = solve_triangle(U1, t[..., :k], upper=True, left=False)
    inner = solve_triangle(L1, scaled[..., :k, :], upper=False, unitriangular=True)
    lower, higher = inner.tril(-1), inner.triu()
    below = scaled[..., k:, :] - L2 @ higher
    beside = solve_triangle(L1, t[..., :k, k:], upper=False, unitriangular=True) - lower @ U2
    return torch.cat([L1 @ lower, below], -2), torch.cat([higher @ U1, beside], -1)


def _lu_packed(factor: Tensor, pivots: Tensor, pivot: bool, t: Tensor) -> Tensor:
    """Return the tangents of the factor that holds L below and U from the diagonal on."""
    P, L, U = torch.lu_unpack(factor, pivots, unpack_pivots=pivot)
    tL, tU = _lu(P, L, U, t)
    out = t.new_zeros(t.shape)
    out[..., : L.shape[-1]] += tL
    out[..., : U.shape[-2], :] += tU
    return out


@linalg_rule(torch.linalg.lu)
def lu(A: Tensor, *, pivot: bool = True) -> Any:
    """A = P L U: L^-1 dL + dU U^-1 = L^-1 P^T dA U^-1, split at the diagonal (S. Axen 2021)."""
    out = torch.linalg.lu(A, pivot=pivot)
    t = tangent(A)
    if t is None:
        return out
    tL, tU = _lu(out.P, out.L, out.U, t)
    return named(out, L=tL, U=tU)


@linalg_rule(torch.linalg.lu_factor)
def lu_factor(A: Tensor, *, pivot: bool = True) -> Any:
    """A = P L U: L^-1 dL + dU U^-1 = L^-1 P^T dA U^-1, split at the diagonal (Axen 2021)."""
    out = torch.linalg.lu_factor(A, pivot=pivot)
    t = tangent(A)
    return out if t is None else named(out, LU=_lu_packed(out.LU, out.pivots, pivot, t))


@linalg_rule(torch.linalg.lu_factor_ex)
def lu_factor_ex(A: Tensor, *, pivot: bool = True, check_errors: bool = False) -> Any:
    """A = P L U: L^-1 dL + dU U^-1 = L^-1 P^T dA U^-1, split at the diagonal (Axen 2021)."""
    out = torch.linalg.lu_factor_ex(A, pivot=pivot, check_errors=check_errors)
    t = tangent(A)
    return out if t is None else named(out, LU=_lu_packed(out.LU, out.pivots, pivot, t))


@linalg_rule(torch._lu_with_info)
def lu_with_info(A: Tensor, pivot: bool = True, check_errors: bool = True) -> Any:
    """Differentiate what ``torch.lu`` calls, as ``torch.linalg.lu_factor_ex``."""
    return tuple(lu_factor_ex(A, pivot=pivot, check_errors=check_errors))


def _qr(Q: Tensor, R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A = Q R: with M = Q^H dA R^-1, dR R^-1 = half_upper(M + M^H) =: S, dQ = dA R^-1 - Q S, dR = S R.

    A wide A = Q [R1 R2] has its dQ from the leading square, and dR = Q^H dA - (Q^H dQ) R. Source: S. F. Walter and
    L. Lehmann (2010), arXiv:1001.1654; the diagonal of R is real, which is how LAPACK chooses the phases.
    """
    m, n = Q.shape[-2], R.shape[-1]
    k = min(m, n)
    scaled = solve_triangle(R[..., :k], t[..., :k], upper=True, left=False)
    inner = Q.mH @ scaled
    S = half_lower(inner + inner.mH).mH
    tQ = scaled - Q @ S
    if n <= m:
        return tQ, S @ R
    return tQ, Q.mH @ t - (inner - S) @ R


def _complete_qr(A: Tensor) -> Any:
    """Q = H_1 ... H_n, with all of its columns, and R from ``geqrf``."""
    packed, tau = geqrf(A)
    out = torch.linalg.qr(A, mode="complete")
    t = tangent(packed)
    assert t is not None
    wider = (0, A.shape[-2] - A.shape[-1])
    Q = householder_product(dual(pad(packed, wider), pad(t, wider)), tau)
    return named(out, Q=tangent(Q), R=t.triu())


@linalg_rule(torch.linalg.qr)
def qr(A: Tensor, mode: str = "reduced") -> Any:
    """A = Q R: M = Q^H dA R^-1, S = half_upper(M + M^H), dQ = dA R^-1 - Q S, dR = S R (Walter, Lehmann 2010).

    The last columns of a tall "complete" move as LAPACK's reflectors do: a loss that depends on them otherwise than
    through the space that they span depends on that choice. "r" computes Q for its own use.
    """
    t = tangent(A)
    if t is None:
        return torch.linalg.qr(A, mode=mode)
    if mode == "complete" and A.shape[-2] > A.shape[-1]:
        return _complete_qr(A)
    out = torch.linalg.qr(A, mode="reduced")
    tQ, tR = _qr(out.Q, out.R, t)
    if mode == "r":
        return type(out)([A.new_empty(0), dual(out.R, tR)])
    return named(out, Q=tQ, R=tR)


def _torch_qr(input: Tensor, some: bool = True) -> Any:
    """Differentiate as ``torch.linalg.qr``, ``some=False`` being its mode "complete"."""
    return qr(input, mode="reduced" if some else "complete")


if type(torch.qr) is type(torch.inverse):
    linalg_rule(torch.qr)(_torch_qr)
