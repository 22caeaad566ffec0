"""What the rules of linear algebra share: K right-hand sides in one solve, Hermitian parts, results by name."""

# ruff: noqa: N803 - matrices have capital letters, as in PyTorch's signatures and in the sources.

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.registry import register
from fwdgrad.dual.tensor import dual, tangent

Rule = Callable[..., Any]


def linalg_rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Enter a rule as ``rule`` does, for the functions this PyTorch has, however the first argument is named.

    ``torch.linalg.inv(A=x)`` and ``torch.inverse(input=x)`` are one rule, whose first parameter is positional. Under
    autocast, PyTorch computes these functions in single precision; so does the rule, its products included.
    """

    def enter(handler: Rule) -> Rule:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not args:
                name = next(name for name in ("A", "input", "self", "x", "LU", "B", "b", "L") if name in kwargs)
                args = (kwargs.pop(name),)
            first = args[0]
            if not torch.is_autocast_enabled(first.device.type):
                return handler(*args, **kwargs)
            with torch.autocast(first.device.type, enabled=False):
                return handler(*map(_single, args), **{key: _single(value) for key, value in kwargs.items()})

        register(call, *[function for function in functions if function is not None])
        return handler

    return enter


def _single(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dtype not in (torch.bfloat16, torch.float16):
        return x
    t = tangent(x)
    return dual(x.float(), None if t is None else t.float())


def named(out: Any, **tangents: Tensor | None) -> Any:
    """Return PyTorch's named tuple ``out`` with tangents attached to the fields that are given."""
    fields = [name for name in type(out).__dict__ if name in tangents]
    assert len(fields) == len(tangents), f"{type(out)} has no {set(tangents) - set(fields)}"
    values = {id(getattr(out, name)): tangents[name] for name in fields}
    return type(out)([dual(value, values[id(value)]) if id(value) in values else value for value in out])


def dagger_part(t: Tensor) -> Tensor:
    """Return the Hermitian part (t + t^H) / 2: what counts of a tangent where the matrix is Hermitian by assumption.

    It is what reverse mode projects on, too; which triangle PyTorch reads makes no difference then.
    """
    return (t + t.mH) / 2


def half_lower(t: Tensor) -> Tensor:
    """Return the lower triangle of t with the diagonal halved; the X with X + X^H = t, for a Hermitian t."""
    return t.tril() - torch.diag_embed(t.diagonal(dim1=-2, dim2=-1) / 2)


def trace_with(matrix: Tensor, t: Tensor) -> Tensor:
    """Return tr(matrix t) for each of K tangents, (K, *batch)."""
    return (matrix.mT * t).sum((-2, -1))


def columns(solve: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Apply a linear map of columns to K tangents (K, *batch, n, m) side by side, as one (*batch, n, K m)."""
    count, m = t.shape[0], t.shape[-1]
    if count == 1:
        return solve(t[0]).unsqueeze(0)
    return solve(t.movedim(0, -2).flatten(-2)).unflatten(-1, (count, m)).movedim(-2, 0)


def rows(solve: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Apply a linear map of rows to K tangents (K, *batch, m, n) below each other, as one (*batch, K m, n)."""
    count, m = t.shape[0], t.shape[-2]
    if count == 1:
        return solve(t[0]).unsqueeze(0)
    return solve(t.movedim(0, -3).flatten(-3, -2)).unflatten(-2, (count, m)).movedim(-3, 0)


def solve_lu(factor: Tensor, pivots: Tensor, t: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """Solve for K right-hand sides with one LU factorisation."""
    place = columns if left else rows
    return place(lambda b: torch.linalg.lu_solve(factor, pivots, b, left=left, adjoint=adjoint), t)


def solve_triangle(A: Tensor, t: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """Solve for K right-hand sides with one triangular matrix."""
    place = columns if left else rows
    return place(lambda b: torch.linalg.solve_triangular(A, b, upper=upper, left=left, unitriangular=unitriangular), t)


def triangle(t: Tensor, upper: bool, unitriangular: bool = False) -> Tensor:
    """Return the triangle that a triangular solve reads."""
    offset = int(unitriangular)
    return t.triu(offset) if upper else t.tril(-offset)


def inverse_or_nan(A: Tensor) -> Tensor:
    """Return A^-1, with nan for a singular matrix, whose tangents shall not look like numbers."""
    inverse, info = torch.linalg.inv_ex(A)
    return torch.where((info == 0)[..., None, None], inverse, torch.nan)


def is_vector(matrix: Tensor, rhs: Tensor) -> bool:
    """Return whether ``torch.linalg`` takes a right-hand side for a vector, or a batch of them."""
    return rhs.dim() == 1 or (rhs.dim() == matrix.dim() - 1 and rhs.shape == matrix.shape[:-1])


def gaps(values: Tensor, what: str) -> Tensor:
    """Return g_ij = x_j - x_i, with ones on the diagonal; report equal values, where derivatives do not exist."""
    gap = values.unsqueeze(-2) - values.unsqueeze(-1)
    gap.diagonal(dim1=-2, dim2=-1).fill_(1)
    if bool((gap == 0).any()):
        warnings.warn(
            f"{what} has equal values: the vectors that belong to them have no derivative and their tangents are not "
            "finite; functions of the values alone are differentiable where they are symmetric in the equal ones",
            stacklevel=5,
        )
    return gap
