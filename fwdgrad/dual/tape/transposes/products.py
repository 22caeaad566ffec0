"""Products of matrices and vectors, and solutions of linear systems by their right-hand side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.table import aten, conj, transpose


def _product_shape(x: Tensor, y: Tensor) -> tuple[int, ...] | None:
    return (*x.shape[:-1], y.shape[-1]) if x.dtype is y.dtype else None


transpose(aten.mm, lambda u, x, y: u @ y.mH, lambda u, x, y: _by_right(torch.mm, u, x, y), shape=_product_shape)
transpose(
    aten.bmm,
    lambda u, x, y: torch.bmm(u, y.mH),
    lambda u, x, y: _by_right(torch.bmm, u, x, y),
    shape=_product_shape,
)


def _by_right(product: Any, u: Tensor, x: Tensor, y: Any) -> Tensor:
    """Return x^H u, laid out as y would be: a weight is often a transposed view there."""
    return product(u.mT, conj(x)).mT if y.is_transposed else product(x.mH, u)


transpose(aten.mv, lambda u, x, v: torch.outer(u, conj(v)), lambda u, x, v: x.mH @ u)
transpose(aten.dot, lambda u, x, y: u * conj(y), lambda u, x, y: u * conj(x))
_TERMS = ((0,), (1, 2))
for _op, _bmm in ((aten.addmm, torch.mm), (aten.baddbmm, torch.bmm)):
    transpose(
        _op,
        lambda u, a, x, y, beta=1, alpha=1: u if beta == 1 else u * conj(beta),
        lambda u, a, x, y, beta=1, alpha=1, f=_bmm: f(u if alpha == 1 else u * conj(alpha), y.mH),
        lambda u, a, x, y, beta=1, alpha=1, f=_bmm: _by_right(f, u if alpha == 1 else u * conj(alpha), x, y),
        terms=_TERMS,
        shape=lambda a, x, y, **kwargs: _product_shape(x, y),
    )
transpose(
    aten.addmv,
    lambda u, a, x, v, beta=1, alpha=1: u * conj(beta),
    lambda u, a, x, v, beta=1, alpha=1: torch.outer(u * conj(alpha), conj(v)),
    lambda u, a, x, v, beta=1, alpha=1: x.mH @ (u * conj(alpha)),
    terms=_TERMS,
)
transpose(
    aten.linalg_cross,
    lambda u, x, y, dim=-1: torch.linalg.cross(conj(y), u, dim=dim),
    lambda u, x, y, dim=-1: torch.linalg.cross(u, conj(x), dim=dim),
)


def _pull_trilinear(place: int) -> Any:
    def pull(u: Tensor, *args: Any) -> Tensor:
        factors, absent, summed = args[:3], args[3:6], args[6]
        rank = factors[0].dim() + len(absent[0])
        kept = [d for d in range(rank) if d not in summed]
        dims = [[d for d in range(rank) if d not in gone] for gone in absent]
        others = [i for i in range(3) if i != place]
        inputs = [x for i in others for x in (conj(factors[i]), dims[i])]
        return torch.einsum(u, kept, *inputs, dims[place])

    return pull


transpose(aten._trilinear, *[_pull_trilinear(i) for i in range(3)])

# x = A^-1 b by various factors of A: the adjoint solves with A^H.
transpose(
    aten.linalg_solve_triangular,
    None,
    lambda u, a, b, upper, left=True, unitriangular=False: torch.linalg.solve_triangular(
        a.mH, u, upper=not upper, left=left, unitriangular=unitriangular
    ),
)
transpose(
    aten.linalg_lu_solve,
    None,
    None,
    lambda u, lu, pivots, b, left=True, adjoint=False: torch.linalg.lu_solve(
        lu, pivots, u, left=left, adjoint=not adjoint
    ),
)
transpose(
    aten._linalg_solve_ex,
    None,
    lambda us, a, b, left=True, check_errors=False: torch.linalg.solve(a.mH, us[0], left=left),
)
transpose(
    aten.linalg_ldl_solve,
    None,
    None,
    lambda u, ld, pivots, b, hermitian=False: (
        torch.linalg.ldl_solve(ld, pivots, u, hermitian=hermitian)
        if hermitian or not u.is_complex()
        else conj(torch.linalg.ldl_solve(ld, pivots, conj(u)))
    ),
)
transpose(aten.cholesky_solve, lambda u, b, factor, upper=False: torch.cholesky_solve(u, factor, upper))
