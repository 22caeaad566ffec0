"""Functions of matrices: exponential, powers, square root, polar decomposition, chains of products, Vandermonde.

Of the roots: N. J. Higham, "Functions of Matrices" (2008), chapters 6 and 8.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite, linear, shift
from fwdgrad.dual.rules.linalg_tools import dagger_part, linalg_rule, named
from fwdgrad.dual.tape.linear_map import linear_map
from fwdgrad.dual.tensor import dual, tangent

linear(
    torch.linalg.diagonal,
    batched=lambda t, *, offset=0, dim1=-2, dim2=-1: torch.linalg.diagonal(
        t, offset=offset, dim1=shift(dim1), dim2=shift(dim2)
    ),
)


@linalg_rule(torch.linalg.matrix_exp, torch.matrix_exp)
def matrix_exp(A: Tensor) -> Tensor:
    """Y = exp A: exp [[A, dA], [0, A]] = [[Y, dY], [0, Y]] (R. Mathias 1996, doi:10.1137/S0895479895283409)."""
    Y = torch.linalg.matrix_exp(A)
    t = tangent(A)
    if t is None:
        return Y
    return dual(Y, linear_map(_push_exponential, lambda u, A: _push_exponential(u, A.mH), t, Y, A))


def _push_exponential(t: Tensor, A: Tensor) -> Tensor:
    n = A.shape[-1]
    blocks = t.new_zeros((*t.shape[:-2], 2 * n, 2 * n))
    blocks[..., :n, :n] = A
    blocks[..., n:, n:] = A
    blocks[..., :n, n:] = t
    return torch.linalg.matrix_exp(blocks)[..., :n, n:]


@composite(torch.linalg.matrix_power, torch.matrix_power)
def matrix_power(A: Tensor, n: int) -> Tensor:
    """Write A^n, by squaring; a negative power as that of the inverse (inv raises where A is singular)."""
    if n == 0:
        return torch.linalg.matrix_power(A.detach(), 0)
    if n < 0:
        return matrix_power(torch.linalg.inv(A), -n)
    out = None
    while n:
        if n % 2:
            out = A if out is None else out @ A
        n //= 2
        A = A @ A if n else A
    assert out is not None
    return out * 1 if out is A else out


def _spectrum(values: Tensor, V: Tensor, t: Tensor) -> Tensor:
    """Return the X with X B + B X = t, for the Hermitian B = V diag(values) V^H; 0 between two values that are 0."""
    total = values.unsqueeze(-2) + values.unsqueeze(-1)
    return V @ ((V.mH @ t @ V) * torch.where(total == 0, 0, 1 / total)) @ V.mH


@linalg_rule(getattr(torch.linalg, "matrix_sqrth", None))
def matrix_sqrth(A: Tensor) -> Tensor:
    """B B = A, Hermitian: dB B + B dB = dA, solved where B is diagonal (N. Higham 2008)."""
    B = torch.linalg.matrix_sqrth(A)
    t = tangent(A)
    if t is None:
        return B
    values, V = torch.linalg.eigh(A)
    return dual(B, _spectrum(values.clamp(min=0).sqrt(), V, dagger_part(t)))


@linalg_rule(getattr(torch.linalg, "polar", None))
def polar(A: Tensor) -> Any:
    """A = U H, H H = A^H A: dH H + H dH = dA^H A + A^H dA, dU = (dA - U dH) H^-1 (Higham 2008)."""
    out = torch.linalg.polar(A)
    t = tangent(A)
    if t is None:
        return out
    product = t.mH @ A
    values, V = torch.linalg.eigh(out.H)
    tH = _spectrum(values, V, product + product.mH)
    tU = ((t - out.U @ tH) @ V) / values.unsqueeze(-2) @ V.mH
    return named(out, U=tU, H=tH)


@composite(torch.linalg.multi_dot)
def multi_dot(tensors: Any) -> Tensor:
    """Write the product of matrices in the cheapest order; the first and the last may be vectors."""
    first, last = tensors[0], tensors[-1]
    factors = list(tensors)
    if first.dim() == 1:
        factors[0] = first.unsqueeze(0)
    if last.dim() == 1:
        factors[-1] = last.unsqueeze(-1)
    out = _chain(factors, *_order([f.shape[0] for f in factors] + [factors[-1].shape[1]]))
    if first.dim() == 1:
        out = out.squeeze(0)
    return out.squeeze(-1) if last.dim() == 1 else out


@composite(getattr(torch._VF, "chain_matmul"))  # noqa: B009 - mypy does not know it
def chain_matmul(matrices: Any) -> Tensor:
    """Write the product of matrices in the cheapest order."""
    return matrices[0] * 1 if len(matrices) == 1 else multi_dot(matrices)


def _order(sizes: list[int]) -> tuple[list[list[int]], int, int]:
    """Return where to split each part of a chain of matrices (sizes[i], sizes[i + 1]): T. Cormen et al., 15.2."""
    n = len(sizes) - 1
    cost = [[0] * n for _ in range(n)]
    split = [[0] * n for _ in range(n)]
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            costs = [(cost[i][k] + cost[k + 1][j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)]
            cost[i][j], split[i][j] = min(costs)
    return split, 0, n - 1


def _chain(factors: list[Tensor], split: list[list[int]], i: int, j: int) -> Tensor:
    if i == j:
        return factors[i]
    k = split[i][j]
    return _chain(factors, split, i, k) @ _chain(factors, split, k + 1, j)


@linalg_rule(torch.linalg.vander)
def vander(x: Tensor, *, N: int | None = None) -> Tensor:
    """V_ij = x_i^j: dV_ij = j V_i,j-1 dx_i."""
    V = torch.linalg.vander(x, N=N)
    t = tangent(x)
    if t is None:
        return V
    lower = V[..., :-1] * torch.arange(1, V.shape[-1], device=V.device)
    return dual(V, torch.nn.functional.pad(lower * t.reshape(t.shape[0], *V.shape[:-1], 1), (1, 0)))


@linalg_rule(torch.vander)
def torch_vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """V_ij = x_i^j, by default in decreasing powers: dV_ij = j V_i,j-1 dx_i."""
    V = torch.vander(x, N, increasing)
    t = tangent(x)
    if t is None or V.shape[-1] == 0:
        return V
    powers = torch.arange(1, V.shape[-1], device=V.device)
    rising = V if increasing else V.flip(-1)
    pushed = torch.nn.functional.pad(rising[..., :-1] * powers * t.unsqueeze(-1), (1, 0))
    return dual(V, pushed if increasing else pushed.flip(-1))
