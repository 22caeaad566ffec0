"""Eigenvalues, singular values, norms, determinants and functions of matrices, with every flag.

Functions whose result has a gauge are composed with what does not depend on it.
"""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from linalg_inputs import Case, definite, general, hermitian, projectors, regular, singular
from torch import Tensor

linalg = torch.linalg


def _spectra() -> Iterator[Case]:
    for uplo in "LU":
        yield Case(
            f"eigh {uplo}",
            lambda A, uplo=uplo: (lambda e: (e[0], projectors(e[1])))(linalg.eigh(hermitian(A), uplo)),
            (general(2, 3, 3),),
        )
        yield Case(f"eigvalsh {uplo}", lambda A, uplo=uplo: linalg.eigvalsh(hermitian(A), uplo), (general(2, 4, 4),))
    yield Case("eig", lambda A: (lambda e: (e[0], projectors(e[1])))(linalg.eig(A)), (general(2, 3, 3),))
    yield Case("eigvals", linalg.eigvals, (general(2, 3, 3),))
    for name, shape in {"": (2, 3, 3), " tall": (4, 3), " wide": (2, 2, 4)}.items():
        yield Case(f"svd{name}", lambda A: _svd(*linalg.svd(A, full_matrices=False)), (general(*shape),))
        yield Case(f"svdvals{name}", linalg.svdvals, (general(*shape),))
        yield Case(f"torch.svd{name}", lambda A: _svd(*_svd_of_torch(A)), (general(*shape),))
        yield Case(f"torch.svd values{name}", lambda A: torch.svd(A, compute_uv=False).S, (general(*shape),))
        yield Case(
            f"svd full{name}",
            lambda A: _null_spaces(*linalg.svd(A, full_matrices=True)),
            (general(*shape),),
            {"reverse": False},
        )
    yield Case("polar", lambda A: _or_skip("polar", A), (general(2, 4, 3),))
    yield Case("matrix_sqrth", lambda A: _or_skip("matrix_sqrth", definite(A)), (general(2, 3, 3),))


def _or_skip(name: str, A: Tensor) -> Any:
    return getattr(linalg, name)(A) if hasattr(linalg, name) else A * 1


def _svd(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, ...]:
    return S, projectors(U, Vh.mH), projectors(U), projectors(Vh.mH)


def _svd_of_torch(A: Tensor) -> tuple[Tensor, ...]:
    U, S, V = torch.svd(A)
    return U, S, V.mH


def _null_spaces(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, ...]:
    k = S.shape[-1]
    free_u, free_v = U[..., k:], Vh[..., k:, :].mH
    return S, free_u @ free_u.mH, free_v @ free_v.mH, (U[..., :k] * S.unsqueeze(-2)) @ Vh[..., :k, :]


def _scalars() -> Iterator[Case]:
    for name, shape in {"": (3, 3), " batch": (2, 4, 4)}.items():
        yield Case(f"det{name}", linalg.det, (general(*shape),))
        yield Case(f"slogdet{name}", linalg.slogdet, (general(*shape),))
        yield Case(f"logdet{name}", lambda A: torch.logdet(definite(A)), (general(*shape),))
    yield Case("Tensor.det", lambda A: A.det(), (general(3, 3),))
    yield Case("det of rank n - 1", torch.det, (singular(3, 2, 4, 4),), {"reverse": False})
    yield Case("det of rank n - 2", linalg.det, (singular(2, 4, 4),), {"reverse": False})
    for p in (None, 2, -2, 1, -1, float("inf"), -float("inf"), "fro", "nuc"):
        singular_values = p in (None, 2, -2, "nuc")
        yield Case(
            f"cond {p}", lambda A, p=p: linalg.cond(A, p), (regular(2, 3, 3),), {"reverse": singular_values}
        )  # else it finds the inverse overwritten
    for p in ("fro", "nuc", 2, -2, 1, -1, float("inf"), -float("inf")):
        yield Case(f"matrix_norm {p}", lambda A, p=p: linalg.matrix_norm(A, p), (general(2, 3, 4),))
        yield Case(
            f"matrix_norm {p} dim",
            lambda A, p=p: linalg.matrix_norm(A, p, dim=(2, 0), keepdim=True),
            (general(3, 2, 4),),
        )
        yield Case(f"norm {p}", lambda A, p=p: linalg.norm(A, p), (general(3, 4),))
    for p in (0, 0.5, 1, 1.5, 2, 3, float("inf"), -1, -float("inf")):
        yield Case(f"vector_norm {p}", lambda x, p=p: linalg.vector_norm(x, p), (general(3, 4),))
        yield Case(
            f"vector_norm {p} dim",
            lambda x, p=p: linalg.vector_norm(x, p, dim=(0, -1), keepdim=True),
            (general(3, 2, 4),),
        )
        yield Case(f"torch.norm {p}", lambda x, p=p: torch.norm(x, p, dim=1), (general(3, 4),))
    yield Case("torch.norm nuc", lambda x: torch.norm(x, "nuc"), (general(3, 4),))
    yield Case("Tensor.norm", lambda x: x.norm(), (general(3, 4),))
    yield Case("norm None", lambda x: linalg.norm(x), (general(2, 3, 4),))
    yield Case("norm dim", lambda x: linalg.norm(x, dim=(0, 1)), (general(2, 3, 4),))


def _functions() -> Iterator[Case]:
    yield Case("matrix_exp", linalg.matrix_exp, (general(2, 3, 3),))
    yield Case("Tensor.matrix_exp", lambda A: A.matrix_exp(), (general(3, 3),))
    yield Case(
        "multi_dot", lambda *m: linalg.multi_dot(m), (general(2, 3), general(3, 4), general(4, 1), general(1, 5))
    )
    yield Case("multi_dot vectors", lambda *m: linalg.multi_dot(m), (general(3), general(3, 4), general(4)))
    yield Case("chain_matmul", lambda *m: torch.linalg.multi_dot(m), (general(2, 3), general(3, 4), general(4, 2)))
    yield Case("vander", linalg.vander, (general(2, 3),))
    yield Case("vander N", lambda x: linalg.vander(x, N=5), (general(3),))
    yield Case("torch.vander", lambda x: torch.vander(x, 4), (general(3),), {"reverse": False})
    yield Case("torch.vander rising", lambda x: torch.vander(x, increasing=True), (general(3),), {"reverse": False})
    yield Case("cross", linalg.cross, (general(4, 3), general(4, 3)))
    yield Case("kron", torch.kron, (general(2, 3), general(3, 2)))
    yield Case("outer", torch.outer, (general(3), general(2)))
    yield Case("inner", torch.inner, (general(2, 3), general(4, 3)))
    for driver in ("gelsy", "gels", "gelsd", "gelss"):
        yield Case(
            f"lstsq tall {driver}",
            lambda A, B, d=driver: (lambda o: (o.solution, o.residuals))(linalg.lstsq(A, B, driver=d)),
            (general(2, 5, 3), general(2, 5, 2)),
            {"reverse": False},
        )
        yield Case(
            f"lstsq wide {driver}",
            lambda A, B, d=driver: linalg.lstsq(A, B, driver=d).solution,
            (general(3, 5), general(3, 2)),
        )
    yield Case("lstsq vectors", lambda A, B: linalg.lstsq(A, B).solution, (general(2, 5, 3), general(2, 5)))
    yield Case(
        "lstsq of lower rank",
        lambda A, B: linalg.lstsq(A @ A.mH, B, driver="gelsd", rcond=1e-9).solution,
        (general(4, 2), general(4, 3)),
    )
    yield Case(
        "lstsq singular values",
        lambda A, B: linalg.lstsq(A, B, driver="gelss").singular_values,
        (general(2, 4, 3), general(2, 4, 2)),
        {"reverse": False},
    )


CASES = [*_spectra(), *_scalars(), *_functions()]
