"""Norms of vectors and matrices, and the condition number."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite, nondifferentiable
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent

nondifferentiable(torch.linalg.matrix_rank)


@rule(torch.linalg.vector_norm)
def vector_norm(
    x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """|x|_p: tangent sum Re(conj(sgn x) dx) (|x| / |x|_p)^(p - 1); at 0 the subgradient 0, as PyTorch has it.

    The maximum's (p = inf) and the minimum's is the mean over ties.
    """
    y = torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype)
    t = tangent(x)
    if t is None or ord == 0:
        return y
    if dtype is not None:
        x, t = x.to(dtype), t.to(dtype)
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple(sorted(d % max(x.dim(), 1) for d in dims)) or tuple(range(x.dim()))
    if x.dim() == 0:
        dims = ()
    kept = y.reshape([1 if d in dims else n for d, n in enumerate(x.shape)])
    weight = _weight(x, kept, ord, dims)
    product = t * weight.conj()
    product = product.real if product.is_complex() else product
    pushed = product.sum([d + 1 for d in dims], keepdim=keepdim) if dims else product
    return dual(y, pushed)


def _weight(x: Tensor, y: Tensor, p: Any, dims: tuple[int, ...]) -> Tensor:
    """Return g with d|x|_p = sum Re(conj(g) dx)."""
    direction = torch.sgn(x)
    if math.isinf(p):
        ties = x.abs() == y
        return direction * ties / (ties.sum(dims, keepdim=True) if dims else ties)
    if p == 1:
        return direction
    if p == 2:
        return torch.where(y == 0, torch.zeros_like(x), x / y)
    power = (x.abs() / y) ** (p - 1)
    return torch.where((y == 0) | (x == 0), torch.zeros_like(x), direction * power)


@composite(torch.linalg.matrix_norm)
def matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Write the norm of matrices by entries ("fro"), sums of rows or columns (1, inf), singular values ("nuc", 2)."""
    if dtype is not None:
        A = A.to(dtype)
    row, column = (d % A.dim() for d in dim)
    if ord == "fro":
        return torch.linalg.vector_norm(A, 2, (row, column), keepdim)
    if ord in (1, -1, math.inf, -math.inf):
        summed, picked = (row, column) if abs(ord) == 1 else (column, row)
        sums = A.abs().sum(summed, keepdim=True)
        out = sums.amax(picked, keepdim=True) if ord > 0 else sums.amin(picked, keepdim=True)
        return out if keepdim else out.squeeze((row, column))
    if ord not in ("nuc", 2, -2):
        torch.linalg.matrix_norm(A.detach(), ord, dim, keepdim)  # raises
    values = torch.linalg.svdvals(A.movedim((row, column), (-2, -1)))
    out = values.sum(-1) if ord == "nuc" else values.amax(-1) if ord == 2 else values.amin(-1)
    if keepdim:
        first, second = sorted((row, column))
        out = out.unsqueeze(first).unsqueeze(second)
    return out


@composite(torch.linalg.norm)
def norm(
    A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Write the norm of a vector, or of a matrix where ``ord`` is given and there are two dimensions."""
    dims = (dim,) if isinstance(dim, int) else dim
    matrix = ord is not None and (A.dim() == 2 if dims is None else len(dims) == 2)
    if matrix or isinstance(ord, str):
        return torch.linalg.matrix_norm(A, ord, (0, 1) if dims is None else dims, keepdim, dtype=dtype)
    return torch.linalg.vector_norm(A, 2 if ord is None else ord, dims, keepdim, dtype=dtype)


@composite(getattr(torch._VF, "norm"))  # noqa: B009 - mypy does not know it
def norm_of_all(
    input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Write what ``torch.norm`` calls for a number p."""
    return torch.linalg.vector_norm(input, 2 if p is None else p, dim or None, keepdim, dtype=dtype)


@composite(torch._VF.frobenius_norm)
def frobenius_norm(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Write what ``torch.norm`` calls for p = "fro"."""
    return torch.linalg.vector_norm(input, 2, dim or None, keepdim)


@composite(torch._VF.nuclear_norm)
def nuclear_norm(input: Tensor, dim: Any = (-2, -1), keepdim: bool = False) -> Tensor:
    """Write what ``torch.norm`` calls for p = "nuc"."""
    return torch.linalg.matrix_norm(input, "nuc", dim, keepdim)


@composite(torch.linalg.cond)
def cond(A: Tensor, p: Any = None) -> Tensor:
    """Write a ratio of singular values (p = 2, -2), or the product of the norms of A and A^-1; inf if singular."""
    if p in (None, 2, -2):
        values = torch.linalg.svdvals(A)
        largest, smallest = values[..., 0], values[..., -1]
        return smallest / largest if p == -2 else largest / smallest
    inverse, info = torch.linalg.inv_ex(A)
    out = torch.linalg.matrix_norm(A, p) * torch.linalg.matrix_norm(inverse, p)
    return torch.where(info == 0, out, math.inf)
