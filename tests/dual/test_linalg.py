"""What rules of linear algebra promise besides right numbers: PyTorch's gauge, one factorisation, clear refusals."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures.

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from checks import check, directions
from linalg_inputs import general, hermitian, regular
from torch.utils._python_dispatch import TorchDispatchMode

import fwdgrad.dual

DTYPES = [torch.float64, torch.complex128]
linalg = torch.linalg


def made(maker, dtype=torch.float64, seed=0):
    return maker(dtype, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=["real", "complex"])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 3), (3, 4)])
@pytest.mark.parametrize("name", ["eigh", "eig", "svd", "qr"])
def test_vectors_move_in_pytorchs_gauge(name, shape, dtype) -> None:
    functions = {
        "eigh": lambda A: linalg.eigh(A @ A.mH)[1],
        "eig": lambda A: linalg.eig(A @ A.mT)[1],
        "svd": lambda A: linalg.svd(A, full_matrices=False)[::2],
        "qr": lambda A: linalg.qr(A)[0],
    }
    A, v = made(general(*shape), dtype), made(general(*shape), dtype, 1)
    if name != "svd" and name != "qr" and shape[-2] > shape[-1]:
        A, v = A.mT, v.mT  # else the eigenvalue 0 is there more than once
    if name in ("eigh", "eig") and A.shape[-2] < A.shape[-1]:
        A, v = A[..., : A.shape[-2]], v[..., : A.shape[-2]]
    ours = fwdgrad.dual.jvp(functions[name], (A,), (v,), fallback="error")
    theirs = torch.func.jvp(functions[name], (A,), (v,))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


class Counted(TorchDispatchMode):
    """Count the operations that are executed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("function", "factorisation"),
    [
        (lambda A, B: linalg.solve(A, B), "linalg_lu_factor_ex"),
        (lambda A, B: linalg.lu_solve(*linalg.lu_factor(A), B), "linalg_lu_factor_ex"),
        (lambda A, B: linalg.inv(A), "linalg_inv_ex"),
        (lambda A, B: linalg.cholesky(A @ A.mT), "linalg_cholesky_ex"),
        (lambda A, B: linalg.eigvalsh(A + A.mT), "_linalg_eigh"),
        (lambda A, B: linalg.svdvals(A), "_linalg_svd"),
        (lambda A, B: linalg.qr(A), "linalg_qr"),
    ],
)
def test_one_factorisation_serves_all_directions(function, factorisation) -> None:
    A, B = made(regular(3, 3)), made(general(3, 2))
    counts = []
    for count in (1, 5):
        vs = tuple(made(general(count, *x.shape), seed=1) for x in (A, B))
        with Counted() as counted:
            directions(function, (A, B), vs)
        assert counted.counts[factorisation] == 1
        counts.append(counted.counts.total())
    assert counts[1] <= counts[0] + 12  # nothing is done once for each direction but moving the tangents


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_determinant_of_a_singular_matrix_has_its_adjugates_derivative(rank) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(3, rank, dtype=torch.float64, generator=generator)
    A = A @ torch.randn(rank, 3, dtype=torch.float64, generator=generator)
    v = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    cofactors = torch.stack([torch.stack([_cofactor(A, i, j) for j in range(3)]) for i in range(3)])
    ours = fwdgrad.dual.jvp(linalg.det, (A,), (v,))[1]
    torch.testing.assert_close(ours, (cofactors * v).sum(), rtol=1e-9, atol=1e-9)


def _cofactor(A, i, j):
    rows, columns = [k for k in range(3) if k != i], [k for k in range(3) if k != j]
    return (-1) ** (i + j) * linalg.det(A[rows][:, columns])


def test_determinants_of_a_batch_with_a_singular_matrix() -> None:
    A = made(general(3, 4, 4))
    A[1, 0] = A[1, 1]
    check(linalg.det, A, reverse=False)


def test_nearly_singular_determinant_is_accurate() -> None:
    U, V = linalg.qr(made(general(3, 3)))[0], linalg.qr(made(general(3, 3), seed=1))[0]
    A = U @ torch.diag(torch.tensor([1.0, 1.0, 1e-13], dtype=torch.float64)) @ V
    v = made(general(3, 3), seed=2)
    ours = fwdgrad.dual.jvp(linalg.det, (A,), (v,))[1]
    cofactors = torch.stack([torch.stack([_cofactor(A, i, j) for j in range(3)]) for i in range(3)])
    torch.testing.assert_close(ours, (cofactors * v).sum(), rtol=1e-12, atol=0)


def test_equal_eigenvalues_are_reported_and_their_sum_is_right() -> None:
    A, v = torch.eye(3, dtype=torch.float64), hermitian(made(general(3, 3)))
    with pytest.warns(UserWarning, match=r"torch.linalg.eigh: the matrix has equal values"):
        _, (values, vectors) = fwdgrad.dual.jvp(lambda A: tuple(linalg.eigh(A)), (A,), (v,))
    torch.testing.assert_close(values.sum(), v.trace())
    assert not vectors.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(fwdgrad.dual.jvp(linalg.eigvalsh, (A,), (v,))[1], v.diagonal())


@pytest.mark.parametrize("name", ["svd", "eig"])
def test_equal_values_are_reported(name) -> None:
    with pytest.warns(UserWarning, match=rf"torch.linalg.{name}: the matrix has equal values"):
        fwdgrad.dual.jvp(
            lambda A: tuple(getattr(linalg, name)(A)), (torch.eye(2).double(),), (torch.ones(2, 2).double(),)
        )


def test_singular_system_raises_as_without_tangents() -> None:
    A, B = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(linalg.LinAlgError, match="singular"):
        fwdgrad.dual.jvp(linalg.solve, (A, B), (A, B))


@pytest.mark.parametrize("dtype", DTYPES, ids=["real", "complex"])
def test_logarithm_of_a_singular_determinant_has_no_finite_tangent(dtype) -> None:
    A = torch.ones(2, 2, 2, dtype=dtype)
    A[1, 0, 0] = 3
    t = fwdgrad.dual.jvp(lambda A: linalg.slogdet(A).logabsdet, (A,), (A,), fallback="error")[1]
    assert t.isnan().tolist() == [True, False]
    assert t[1] == 2


def test_results_keep_their_names_and_take_keywords() -> None:
    A = made(regular(3, 3))

    def function(A):
        solved = linalg.solve_ex(A=A, B=A)
        assert type(solved) is torch.return_types.linalg_solve_ex
        assert type(linalg.qr(A=A)) is torch.return_types.linalg_qr
        assert type(linalg.slogdet(A=A)) is torch.return_types.linalg_slogdet
        return linalg.inv(A=A) + torch.inverse(input=A) + solved.result

    check(function, A)


@pytest.mark.parametrize("function", [linalg.inv, linalg.det, linalg.svdvals, lambda A: linalg.solve(A, A.mT)])
def test_views_that_are_conjugated_and_transposed(function) -> None:
    check(lambda A: function(A.mH), made(regular(2, 3, 3), torch.complex128))
    check(lambda A: function(A[..., ::2, 1:3].conj()), made(general(2, 4, 4), torch.complex128))


@pytest.mark.parametrize("ord", [None, 2, 1, float("inf"), 3, 0.5])
def test_norm_at_zero_has_the_tangent_zero(ord) -> None:
    x, v = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    y, t = fwdgrad.dual.jvp(lambda x: linalg.norm(x, ord), (x,), (v,), fallback="error")
    assert y == t == 0


def test_largest_entry_shares_its_derivative_among_ties() -> None:
    x, v = torch.tensor([3.0, -3.0, 1.0]), torch.tensor([1.0, 5.0, 7.0])
    assert fwdgrad.dual.jvp(lambda x: linalg.vector_norm(x, float("inf")), (x,), (v,))[1] == (1 - 5) / 2


def test_what_is_not_differentiable_stays_plain() -> None:
    A = made(regular(3, 3))

    def function(A):
        rank = linalg.matrix_rank(A)
        P, _, _ = linalg.lu(A)
        assert type(rank) is torch.Tensor
        assert type(P) is torch.Tensor
        assert type(linalg.inv_ex(A).info) is torch.Tensor
        return A * rank

    check(function, A)


def test_single_precision_stays_single() -> None:
    A = made(regular(3, 3), torch.float32)
    for function in (linalg.inv, linalg.det, linalg.eigvalsh, linalg.matrix_exp, linalg.vector_norm, linalg.cond):
        y, t = fwdgrad.dual.jvp(function, (A,), (A,), fallback="error")
        assert y.dtype == t.dtype == torch.float32
    assert fwdgrad.dual.jvp(linalg.eigvals, (A,), (A,))[1].dtype == torch.complex64


@pytest.mark.parametrize(
    "function",
    [
        linalg.solve,
        lambda A, B: linalg.inv(A),
        lambda A, B: linalg.pinv(A),
        lambda A, B: linalg.det(A),
        lambda A, B: linalg.lstsq(A, B).solution,
        lambda A, B: linalg.matrix_norm(A, "nuc") * B,
    ],
)
def test_autocast_leaves_single_precision(function) -> None:
    A, B = made(regular(8, 8)), made(regular(8, 8), seed=1)
    vs = made(general(8, 8), seed=2), made(general(8, 8), seed=3)
    exact = fwdgrad.dual.jvp(function, (A, B), vs)[1]

    def cast(A, B):
        with torch.autocast("cpu", torch.bfloat16):
            return function(A, B)

    single, directions = (A.float(), B.float()), tuple(v.float() for v in vs)
    y, t = fwdgrad.dual.jvp(cast, single, directions, fallback="error")
    assert y.dtype == t.dtype == torch.float32
    torch.testing.assert_close(t, exact.float(), rtol=1e-3, atol=1e-3)


def test_autocast_takes_matrices_that_it_made_half() -> None:
    A = made(regular(4, 4), torch.float32)

    def function(A):
        with torch.autocast("cpu", torch.bfloat16):
            return linalg.inv(A @ A)

    y, t = fwdgrad.dual.jvp(function, (A,), (A,), fallback="error")
    assert y.dtype == t.dtype == torch.float32
    torch.testing.assert_close(t, -2 * linalg.inv(A @ A), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("function", [linalg.inv, linalg.det, linalg.slogdet, linalg.svdvals, linalg.eigh, linalg.qr])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0)])
def test_empty_matrices(function, shape) -> None:
    A = torch.zeros(shape, dtype=torch.float64)
    values, pushed = directions(function, (A,), (torch.zeros(3, *shape, dtype=torch.float64),))
    assert [t.shape for t in pushed if t is not None] == [
        (3, *v.shape) for v, t in zip(values, pushed, strict=True) if t is not None
    ]
    assert function is linalg.det or any(
        t is not None for t in pushed
    )  # the determinant of an empty matrix is constant
