"""Linear systems and triangular decompositions with every flag, real and complex, in batches and broadcast."""

# ruff: noqa: N803 - matrices have capital letters, as in PyTorch's signatures.

from __future__ import annotations

from collections.abc import Iterator

import torch
from linalg_inputs import (
    Case,
    cholesky_factor,
    definite,
    general,
    hermitian,
    indefinite,
    regular,
    triangular,
    with_real_diagonal,
)
from torch import Tensor

linalg = torch.linalg


def _inverses() -> Iterator[Case]:
    yield Case("inv", linalg.inv, (regular(2, 3, 3),))
    yield Case("inverse", torch.inverse, (regular(3, 3),))
    yield Case("Tensor.inverse", lambda A: A.inverse(), (regular(3, 3),))
    yield Case("inv_ex", lambda A: linalg.inv_ex(A).inverse, (regular(3, 3),))
    yield Case("tensorinv", lambda A: linalg.tensorinv(A, ind=1), (general(6, 2, 3),))
    yield Case("matrix_power 3", lambda A: linalg.matrix_power(A, 3), (general(2, 3, 3),))
    yield Case("matrix_power 1", lambda A: torch.matrix_power(A, 1), (general(3, 3),))
    yield Case("matrix_power -2", lambda A: A.matrix_power(-2), (regular(3, 3),))
    yield Case("matrix_power 0", lambda A: linalg.matrix_power(A, 0), (regular(3, 3),))
    yield Case("pinv tall", linalg.pinv, (general(2, 4, 3),))
    yield Case("pinv wide", linalg.pinv, (general(3, 5),))
    yield Case("pinv singular", lambda A: linalg.pinv(A @ A.mH, rtol=1e-8), (general(4, 2),))
    yield Case("pinv hermitian", lambda A: linalg.pinv(hermitian(A), hermitian=True), (general(3, 3),))
    yield Case("pinv rtol", lambda A: linalg.pinv(A, atol=1e-9, rtol=1e-7), (general(3, 2),))
    yield Case("pinverse", torch.pinverse, (general(3, 4),))


def _solutions() -> Iterator[Case]:
    yield Case("solve", linalg.solve, (regular(2, 3, 3), general(2, 3, 2)))
    yield Case("solve broadcast", linalg.solve, (regular(3, 3), general(2, 3, 2)))
    yield Case("solve broadcast back", linalg.solve, (regular(2, 1, 3, 3), general(3, 3, 2)))
    yield Case("solve vector", linalg.solve, (regular(3, 3), general(3)))
    yield Case("solve vectors", linalg.solve, (regular(2, 3, 3), general(2, 3)))
    yield Case("solve right", lambda A, B: linalg.solve(A, B, left=False), (regular(3, 3), general(2, 4, 3)))
    yield Case("solve_ex", lambda A, B: linalg.solve_ex(A, B).result, (regular(2, 3, 3), general(2, 3, 2)))
    yield Case("tensorsolve", lambda A, B: linalg.tensorsolve(A, B), (general(2, 3, 6), general(2, 3)))
    yield Case("tensorsolve dims", lambda A, B: linalg.tensorsolve(A, B, dims=(0,)), (general(6, 2, 3), general(2, 3)))
    for upper in (False, True):
        for left in (False, True):
            for unit in (False, True):
                flags = {"upper": upper, "left": left, "unitriangular": unit}
                shapes = (triangular(3, 3), general(2, 3, 2) if left else general(2, 2, 3))
                yield Case(
                    f"solve_triangular {upper} {left} {unit}",
                    lambda A, B, flags=flags: linalg.solve_triangular(A, B, **flags),
                    shapes,
                )
    for upper in (False, True):
        for transpose in (False, True):
            for unit in (False, True):
                flags = {"upper": upper, "transpose": transpose, "unitriangular": unit}
                yield Case(
                    f"triangular_solve {upper} {transpose} {unit}",
                    lambda b, A, flags=flags: torch.triangular_solve(b, A, **flags),
                    (general(3, 2), triangular(3, 3)),
                    {"reverse": not unit},  # it takes the diagonal for read
                )
    yield Case("triangular_solve broadcast", torch.triangular_solve, (general(2, 3, 2), triangular(3, 3)))


def _factored() -> Iterator[Case]:
    for upper in (False, True):
        yield Case(
            f"cholesky_solve {upper}",
            lambda B, L, upper=upper: torch.cholesky_solve(B, L.triu() if upper else L.tril(), upper),
            (general(2, 3, 2), triangular(3, 3)),
        )
        yield Case(
            f"cholesky_solve of the shape of vectors {upper}",
            lambda B, L, upper=upper: torch.cholesky_solve(B, L.triu() if upper else L.tril(), upper),
            (general(3, 3), triangular(3, 3, 3)),
        )
        yield Case(
            f"cholesky_inverse {upper}",
            lambda A, upper=upper: torch.cholesky_inverse(cholesky_factor(A, upper), upper),
            (triangular(2, 3, 3),),
        )
        yield Case(
            f"cholesky_inverse, all of it given, {upper}",
            lambda L, upper=upper: torch.cholesky_inverse(with_real_diagonal(L), upper),
            (triangular(3, 3),),
            {"reverse": False},  # it takes the other triangle for zero
        )
        yield Case(
            f"cholesky_solve, all of it given, {upper}",
            lambda B, L, upper=upper: torch.cholesky_solve(B, L, upper),
            (general(3, 2), triangular(3, 3)),
            {"reverse": False},
        )
    for left in (False, True):
        for adjoint in (False, True):
            yield Case(
                f"lu_solve {left} {adjoint}",
                lambda A, B, left=left, adjoint=adjoint: linalg.lu_solve(
                    *linalg.lu_factor(A), B, left=left, adjoint=adjoint
                ),
                (regular(2, 3, 3), general(3, 2) if left else general(2, 3)),
            )
    yield Case("torch.lu_solve", _torch_lu_solve, (regular(2, 3, 3), general(2, 3, 2)))
    yield Case("lu_unpack", lambda F: torch.lu_unpack(F, _pivots(F))[1:], (general(2, 3, 3),))
    yield Case("lu_unpack tall", lambda F: torch.lu_unpack(F, _pivots(F))[1:], (general(4, 3),))
    yield Case("lu_unpack wide", lambda F: torch.lu_unpack(F, _pivots(F), unpack_pivots=False)[1:], (general(2, 4),))
    for flag in (False, True):
        yield Case(
            f"ldl_solve {flag}",
            lambda A, B, flag=flag: linalg.ldl_solve(
                *linalg.ldl_factor(indefinite(A, flag), hermitian=flag), B, hermitian=flag
            ),
            (regular(3, 5, 5), general(5, 2)),
            {"reverse": False},  # it has none
        )


def _torch_lu_solve(A: Tensor, B: Tensor) -> Tensor:
    factor, pivots = linalg.lu_factor(A)
    return torch.lu_solve(B, factor, pivots)


def _pivots(factor: Tensor) -> Tensor:
    last = min(factor.shape[-2:])
    one = torch.arange(1, last + 1, dtype=torch.int32)
    one[0] = last
    return one.expand(*factor.shape[:-2], last).contiguous()


def _decompositions() -> Iterator[Case]:
    for upper in (False, True):
        yield Case(f"cholesky {upper}", lambda A, u=upper: linalg.cholesky(definite(A), upper=u), (general(2, 3, 3),))
        yield Case(
            f"cholesky_ex {upper}", lambda A, u=upper: linalg.cholesky_ex(definite(A), upper=u).L, (general(3, 3),)
        )
    for name, shape in {"": (2, 3, 3), " tall": (4, 3), " wide": (3, 5)}.items():
        yield Case(f"lu{name}", lambda A: linalg.lu(A)[1:], (general(*shape),))
        yield Case(f"lu_factor{name}", lambda A: linalg.lu_factor(A).LU, (general(*shape),))
        yield Case(f"lu_factor_ex{name}", lambda A: linalg.lu_factor_ex(A).LU, (general(*shape),))
        yield Case(f"torch.lu{name}", lambda A: torch.lu(A)[0], (general(*shape),))
        yield Case(f"qr{name}", linalg.qr, (general(*shape),))
        yield Case(f"qr r{name}", lambda A: linalg.qr(A, mode="r").R, (general(*shape),), {"reverse": False})
    yield Case("qr complete tall", lambda A: linalg.qr(A, mode="complete"), (general(2, 5, 3),), {"reverse": False})
    yield Case("qr complete wide", lambda A: linalg.qr(A, mode="complete"), (general(2, 3, 4),))
    if type(torch.qr) is type(torch.inverse):  # later versions have only a message in its place
        yield Case("torch.qr", torch.qr, (general(4, 3),))
        yield Case("torch.cholesky", lambda A: torch.cholesky(definite(A)), (general(3, 3),))
    for flag in (False, True):
        for ex in (False, True):
            factor = linalg.ldl_factor_ex if ex else linalg.ldl_factor
            yield Case(
                f"ldl_factor {flag} {ex}",
                lambda A, flag=flag, factor=factor: factor(indefinite(A, flag), hermitian=flag)[0],
                (regular(4, 6, 6),),
                {"reverse": False},
            )
    for k in (2, 3):
        yield Case(f"householder_product {k}", linalg.householder_product, (general(2, 4, 3), general(2, k)))
    for name, shape in {"": (2, 3, 3), " tall": (4, 3), " wide": (3, 5)}.items():
        yield Case(f"geqrf{name}", torch.geqrf, (general(*shape),), {"reverse": False})
    yield Case("geqrf and orgqr", lambda A: torch.orgqr(*torch.geqrf(A)), (general(2, 4, 3),), {"reverse": False})
    yield Case("orgqr", torch.orgqr, (general(3, 3), general(3)))
    for left in (False, True):
        for transpose in (False, True):
            yield Case(
                f"ormqr {left} {transpose}",
                lambda A, tau, C, left=left, transpose=transpose: torch.ormqr(A, tau, C, left, transpose),
                (general(2, 4, 3), general(2, 3), general(2, 4, 2) if left else general(2, 2, 4)),
            )


CASES = [*_inverses(), *_solutions(), *_factored(), *_decompositions()]
