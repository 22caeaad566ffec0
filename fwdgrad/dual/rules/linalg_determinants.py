"""Determinants, also of singular matrices. Source of the formulas: Giles (2008), see ``linalg_solve``."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.rules.linalg_tools import inverse_or_nan, linalg_rule, named, trace_with
from fwdgrad.dual.tensor import dual, tangent


def adjugate(A: Tensor) -> Tensor:
    """Return adj(A), with A adj(A) = det(A) I: det(U V^H) V diag(prod_{j != i} s_j) U^H, finite for a singular A.

    Source: G. W. Stewart, "On the adjugate matrix" (1998), doi:10.1016/S0024-3795(98)10098-8.
    """
    U, S, Vh = torch.linalg.svd(A)
    ones = torch.ones_like(S[..., :1])
    before = torch.cat([ones, S[..., :-1].cumprod(-1)], -1)
    after = torch.cat([ones, S[..., 1:].flip(-1).cumprod(-1)], -1).flip(-1)
    others = before * after
    phase = torch.linalg.det(U) * torch.linalg.det(Vh)
    return (phase[..., None, None] * Vh.mH * others.unsqueeze(-2)) @ U.mH


@linalg_rule(torch.linalg.det, torch.det)
def det(A: Tensor) -> Tensor:
    """Jacobi: D = |A| has dD = tr(adj(A) dA) (Giles 2008), where adj(A) = D A^-1 if A is far from singular."""
    t = tangent(A)
    if t is None or A.shape[-1] == 0:
        return torch.linalg.det(A)
    factor, pivots, _ = torch.linalg.lu_factor_ex(A)
    value = torch.linalg.det(A)
    sizes = factor.diagonal(dim1=-2, dim2=-1).abs()
    regular = sizes.amin(-1) > sizes.amax(-1) * torch.finfo(sizes.dtype).eps ** 0.5
    if bool(regular.all()):
        identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return dual(value, value * trace_with(torch.linalg.lu_solve(factor, pivots, identity), t))
    return dual(value, trace_with(adjugate(A), t))


@linalg_rule(torch.linalg.slogdet, torch.slogdet)
def slogdet(A: Tensor) -> Any:
    """With c = tr(A^-1 dA): d log|det A| = Re c, d sign = i Im(c) sign, zero for a real A (Giles 2008)."""
    out = torch.linalg.slogdet(A)
    t = tangent(A)
    if t is None:
        return out
    change = trace_with(inverse_or_nan(A), t)
    if not A.is_complex():
        return named(out, logabsdet=change)
    return named(out, sign=torch.complex(torch.zeros_like(change.imag), change.imag) * out.sign, logabsdet=change.real)


@linalg_rule(torch.logdet)
def logdet(A: Tensor) -> Tensor:
    """C = log det A: dC = tr(A^-1 dA) (Giles 2008)."""
    value = torch.logdet(A)
    t = tangent(A)
    return value if t is None else dual(value, trace_with(inverse_or_nan(A), t))
