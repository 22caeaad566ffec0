"""Singular values and vectors.

A pair of singular vectors is determined up to a phase, and up to a rotation among those of equal values. The tangents
here are PyTorch's, which share the free phase of a complex pair evenly. A loss has a derivative where it does not
depend on that choice; with ``full_matrices`` it may depend on the additional vectors through the space that they span.
Where values are equal a warning tells that their vectors have none.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.rules.linalg_tools import gaps, linalg_rule, named
from fwdgrad.dual.tensor import dual, tangent


def _svd(U: Tensor, S: Tensor, Vh: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A = U diag(s) V^H, P = U^H dA V: ds = Re diag(P), dU = U (P s + s P^H) / g, dV = V (s P + P^H s) / g.

    With g_ij = s_j^2 - s_i^2: J. Townsend, "Differentiating the singular value decomposition" (2016). To this come,
    for a complex A, i Im P_ii / 2 s_i on the diagonal (Z.-Q. Wan and S.-X. Zhang 2019, arXiv:1909.02659), and for a
    rectangular one (I - U U^H) dA V / s.
    """
    right = t @ Vh.mH
    P = U.mH @ right
    diagonal = P.diagonal(dim1=-2, dim2=-1)
    values = diagonal.real.clone() if P.is_complex() else diagonal.clone()
    gap = gaps(S, "torch.linalg.svd: the matrix")
    total = S.unsqueeze(-2) + S.unsqueeze(-1)
    _diagonal(total).fill_(1)
    s, gap = S.unsqueeze(-2), gap * total
    left_turn = _off_diagonal(P * s + s.mT * P.mH, gap)
    right_turn = _off_diagonal(s.mT * P + P.mH * s, gap)
    if P.is_complex():
        phase = torch.complex(torch.zeros_like(values), diagonal.imag / (2 * S))
        _diagonal(left_turn).copy_(phase)
        _diagonal(right_turn).copy_(-phase)
    tU = U @ left_turn
    tV = Vh.mH @ right_turn
    if U.shape[-2] > U.shape[-1]:
        tU = tU + (right - U @ P) / s
    if Vh.shape[-1] > Vh.shape[-2]:
        tV = tV + (t.mH @ U - Vh.mH @ P.mH) / s
    return tU, values, tV.mH


def _diagonal(t: Tensor) -> Tensor:
    return t.diagonal(dim1=-2, dim2=-1)


def _off_diagonal(t: Tensor, divisor: Tensor) -> Tensor:
    out = t / divisor
    _diagonal(out).zero_()
    return out


def values_along(U: Tensor, Vh: Tensor, t: Tensor) -> Tensor:
    """Return Re diag(U^H t V), the tangents of the singular values."""
    product = U.conj() * (t @ Vh.mH)
    return product.sum(-2).real if product.is_complex() else product.sum(-2)


def _full(U: Tensor, S: Tensor, Vh: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tangents of all singular vectors; those past the last value complement the others."""
    k = S.shape[-1]
    tU, tS, tVh = _svd(U[..., :k], S, Vh[..., :k, :], t)
    return _completed(U, tU), tS, _completed(Vh.mH, tVh.mH).mH


def _completed(Q: Tensor, t: Tensor) -> Tensor:
    """Q = [Q1 Q2], unitary: dQ2 = -Q1 dQ1^H Q2, the least that keeps Q2 orthogonal to Q1."""
    k = t.shape[-1]
    if k == Q.shape[-1]:
        return t
    return torch.cat([t, -Q[..., :k] @ (t.mH @ Q[..., k:])], -1)


@linalg_rule(torch.linalg.svd)
def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None) -> Any:
    """A = U diag(s) V^H, P = U^H dA V: ds = Re diag(P), dU = U (P s + s P^H)_ij / (s_j^2 - s_i^2) (Townsend 2016)."""
    t = tangent(A)
    out = torch.linalg.svd(A, full_matrices, driver=driver)
    if t is None:
        return out
    tU, tS, tVh = _full(out.U, out.S, out.Vh, t)
    return named(out, U=tU, S=tS, Vh=tVh)


@linalg_rule(torch.linalg.svdvals)
def svdvals(A: Tensor, *, driver: str | None = None) -> Tensor:
    """A = U diag(s) V^H: ds = Re diag(U^H dA V) (Giles 2008)."""
    t = tangent(A)
    if t is None:
        return torch.linalg.svdvals(A, driver=driver)
    U, S, Vh = torch.linalg.svd(A, False, driver=driver)
    return dual(S, values_along(U, Vh, t))


@linalg_rule(torch.svd)
def torch_svd(input: Tensor, some: bool = True, compute_uv: bool = True) -> Any:
    """Differentiate as ``torch.linalg.svd``, which returns V^H where this returns V."""
    t = tangent(input)
    out = torch.svd(input, some, compute_uv)
    if t is None:
        return out
    if not compute_uv:
        U, _, Vh = torch.linalg.svd(input, False)
        return named(out, S=values_along(U, Vh, t))
    tU, tS, tVh = _full(out.U, out.S, out.V.mH, t)
    return named(out, U=tU, S=tS, V=tVh.mH)
