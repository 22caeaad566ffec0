"""All of PyTorch's sample inputs for functions of linear algebra, served by rules alone."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("expecttest")  # PyTorch's database of operations needs it

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch's own, on import
    import op_db
    import op_samples

OTHERS = {
    *("cholesky_inverse", "cholesky_solve", "inner", "kron", "logdet", "lu", "lu_solve", "lu_unpack", "matrix_exp"),
    *("norm", "norm.fro", "norm.inf", "norm.nuc", "ormqr", "outer", "pinverse", "svd", "triangular_solve"),
}
ENTRIES = [
    op
    for op in op_samples.entries()
    if (op_samples.name_of(op) in OTHERS or op.name.startswith("linalg."))
    and op_samples.name_of(op)
    != "linalg.lstsq"  # its singular values lie too close for differences; see the entry below
]


@pytest.mark.parametrize("op", ENTRIES, ids=[op_samples.name_of(op) for op in ENTRIES])
def test_samples(op) -> None:
    examine(op, limit=16)


@pytest.mark.slow
@pytest.mark.parametrize("op", ENTRIES, ids=[op_samples.name_of(op) for op in ENTRIES])
def test_all_samples(op) -> None:
    examine(op, limit=None)


def examine(op, limit) -> None:
    report = op_db.examine(op, limit, variants=False)
    assert report.samples > 0
    assert report.status == "rule", (report.fallbacks, report.notes)
    assert report.error < 1e-10


def test_the_entries_are_found() -> None:
    assert len(ENTRIES) >= 55
    assert "linalg.lstsq.grad_oriented" in [op_samples.name_of(op) for op in ENTRIES]
