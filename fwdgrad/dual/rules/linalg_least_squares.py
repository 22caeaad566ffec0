"""Least squares and the pseudoinverse, where the rank does not change."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align
from fwdgrad.dual.rules.linalg_svd import values_along
from fwdgrad.dual.rules.linalg_tools import dagger_part, is_vector, linalg_rule, named
from fwdgrad.dual.tensor import dual, tangent


def _pinv_tangents(A: Tensor, C: Tensor, t: Tensor) -> Tensor:
    """C = A^+: dC = -C dA C + C C^H dA^H (I - A C) + (I - C A) dA^H C^H C, on matrices of one rank.

    Source: G. H. Golub and V. Pereyra (1973), doi:10.1137/0710036.
    """
    small = C @ t @ C
    product = t.mH @ (C.mH @ C)
    tall = C @ (C.mH @ t.mH)
    return product - C @ (A @ product) + tall - (tall @ A) @ C - small


@linalg_rule(torch.linalg.pinv)
def pinv(A: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """C = A^+: dC = -C dA C + C C^H dA^H (I - A C) + (I - C A) dA^H C^H C (Golub, Pereyra 1973)."""
    C = torch.linalg.pinv(A, *args, **kwargs)
    t = tangent(A)
    if t is None:
        return C
    hermitian = kwargs.get("hermitian", bool(args[1:]) and args[1])
    if not hermitian:
        return dual(C, _pinv_tangents(A, C, t))
    lower = A.tril() + A.tril(-1).mH  # the triangle that is read
    return dual(C, _pinv_tangents(lower, C, dagger_part(t)))


@linalg_rule(torch.pinverse)
def pinverse(input: Tensor, rcond: Any = 1e-15) -> Tensor:
    """Differentiate as ``torch.linalg.pinv``."""
    return pinv(input, rcond)


@linalg_rule(torch.linalg.lstsq)
def lstsq(A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Any:
    """X = A^+ B, R = B - A X: dX = A^+ (dB - dA X) + A^+ A^+H dA^H R + (I - A^+ A) dA^H A^+H X (Golub, Pereyra 1973).

    The residuals |R|^2 change by 2 Re R^H (dB - dA X), the singular values by Re diag(U^H dA V).
    """
    out = torch.linalg.lstsq(A, B, rcond, driver=driver)
    tA, tB = tangent(A), tangent(B)
    if tA is None and tB is None:
        return out
    vector = is_vector(A, B)
    X = out.solution.unsqueeze(-1) if vector else out.solution
    rhs = B.unsqueeze(-1) if vector else B
    C = torch.linalg.pinv(A, **({} if rcond is None else {"rtol": max(rcond, 0.0)}))
    change = None if tB is None else align(tB.unsqueeze(-1) if vector else tB, X.dim())
    if tA is not None:
        tA = align(tA, X.dim())
        change = -(tA @ X) if change is None else change - tA @ X
    assert change is not None
    R = rhs - A @ X
    t = C @ change
    if tA is not None:
        back = tA.mH @ (C.mH @ X)
        t = t + C @ (C.mH @ (tA.mH @ R)) + back - C @ (A @ back)
    pushed: dict[str, Tensor | None] = {"solution": t.squeeze(-1) if vector else t}
    if out.residuals.numel():
        size = 2 * (R.conj() * change).sum(-2)
        size = size.real if size.is_complex() else size
        pushed["residuals"] = size.reshape(size.shape[0], *out.residuals.shape)
    if out.singular_values.numel() and tA is not None:
        U, _, Vh = torch.linalg.svd(A, False)
        pushed["singular_values"] = values_along(U, Vh, tA.reshape(tA.shape[0], *A.shape))
    return named(out, **pushed)
