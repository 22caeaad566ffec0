"""Products of Householder reflectors H_i = I - tau_i v_i v_i^H, where v_i is column i below a 1 on the diagonal.

Both functions apply the reflectors one after another, to the primal and to all tangents:
d(H Y) = H dY - (dtau v v^H + tau dv v^H + tau v dv^H) Y.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.rules.linalg_tools import linalg_rule, named
from fwdgrad.dual.tensor import dual, tangent


def _apply(
    A: Tensor, tau: Tensor, Y: Tensor, tangents: tuple[Tensor | None, Tensor | None, Tensor], order: Iterable[int]
) -> Tensor:
    """Return the tangents of the product of reflectors with Y, the first in ``order`` being applied first."""
    tA, ttau, tY = tangents
    m = A.shape[-2]
    below = torch.ones(m, 1, dtype=A.dtype, device=A.device)
    for i in order:
        v = A[..., i : i + 1] * below.tril(-1 - i)
        v[..., i, :] = 1
        factor = tau[..., i, None, None]
        inner = v.mH @ Y
        moved = v.mH @ tY
        change = factor * moved
        if ttau is not None:
            change = change + ttau[..., i, None, None] * inner
        if tA is not None:
            tv = torch.nn.functional.pad(tA[..., i + 1 :, i : i + 1], (0, 0, i + 1, 0))
            change = change + factor * (tv.mH @ Y)
            tY = tY - factor * (tv @ inner)
        tY = tY - v @ change
        Y = Y - factor * (v @ inner)
    return tY


@linalg_rule(torch.linalg.householder_product, torch.orgqr)
def householder_product(A: Tensor, tau: Tensor) -> Tensor:
    """Q = H_1 ... H_k I, its first columns: d(H Y) = H dY - d(tau v v^H) Y, from the last reflector to the first."""
    Q = torch.linalg.householder_product(A, tau)
    tA, ttau = tangent(A), tangent(tau)
    some = tA if tA is not None else ttau
    if some is None:
        return Q
    identity = torch.eye(*A.shape[-2:], dtype=A.dtype, device=A.device)
    zero = torch.zeros((some.shape[0], *A.shape), dtype=A.dtype, device=A.device)
    return dual(Q, _apply(A, tau, identity, (tA, ttau, zero), reversed(range(tau.shape[-1]))))


@linalg_rule(torch.ormqr)
def ormqr(input: Tensor, tau: Tensor, other: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    """Q C, Q^H C, C Q or C Q^H with Q = H_1 ... H_k: d(H Y) = H dY - d(tau v v^H) Y, one reflector at a time."""
    out = torch.ormqr(input, tau, other, left, transpose)
    tA, ttau, tC = tangent(input), tangent(tau), tangent(other)
    count = next((t.shape[0] for t in (tA, ttau, tC) if t is not None), None)
    if count is None:
        return out
    if tC is None:
        tC = torch.zeros((count, *other.shape), dtype=other.dtype, device=other.device)
    adjoint = transpose if left else not transpose  # C Q = (Q^H C^H)^H
    Y, tY = (other, tC) if left else (other.mH, tC.mH)
    order = range(tau.shape[-1])
    if adjoint:  # Q^H = H_k^H ... H_1^H, and H^H has conj(tau)
        tau, ttau = tau.conj(), None if ttau is None else ttau.conj()
    pushed = _apply(input, tau, Y, (tA, ttau, tY), order if adjoint else reversed(order))
    return dual(out, pushed if left else pushed.mH)


@linalg_rule(torch.geqrf)
def geqrf(input: Tensor) -> Any:
    """H_i^H x = b e_1: db = Re(x^H dx) / b, dtau = ((1 - tau) db - dx_1) / b, dv = (dx - v (dx_1 - db)) / (x_1 - b).

    Below the diagonal v is kept, on and above it R; the reflectors are those of LAPACK (``?larfg``), so that b is real.
    """
    out = torch.geqrf(input)
    t = tangent(input)
    if t is None:
        return out
    packed, tau = out
    t, Y = t.clone(), input.clone()
    ttau = t.new_zeros((t.shape[0], *tau.shape))
    for i in range(tau.shape[-1]):
        factor, b = tau[..., i, None], packed[..., i, i, None]
        x, tx = Y[..., i:, i], t[..., i:, i]
        v = torch.cat([torch.ones_like(b), packed[..., i + 1 :, i]], -1)
        tb = (x.conj() * tx).sum(-1, keepdim=True) / b
        tb = tb.real if tb.is_complex() else tb
        first = tx[..., :1]
        some = factor != 0  # a column that is b e_1 already is left as it is
        ttau[..., i] = torch.where(some, ((1 - factor) * tb - first) / b, torch.zeros_like(first))[..., 0]
        tv = torch.where(some, tx - v * (first - tb), 0) / torch.where(some, x[..., :1] - b, 1)
        tv[..., 0] = 0
        v, tv, factor = v.unsqueeze(-1), tv.unsqueeze(-1), factor.unsqueeze(-1).conj()
        rest, trest = Y[..., i:, i:], t[..., i:, i:]
        inner = v.mH @ rest
        change = ttau[..., i, None, None].conj() * inner + factor * (tv.mH @ rest + v.mH @ trest)
        trest -= v @ change + factor * (tv @ inner)
        Y = Y.clone()  # in reverse mode the one so far is needed yet
        Y[..., i:, i:] -= factor * (v @ inner)
        t[..., i + 1 :, i] = tv[..., 1:, 0]
        Y[..., i + 1 :, i] = packed[..., i + 1 :, i]
    return named(out, a=t, tau=ttau)
