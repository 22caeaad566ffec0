"""PyTorch's own sample inputs in reverse mode: each entry is right, or refused."""

import warnings
from typing import Any

import pytest
import torch
from test_op_db import FALLBACK, REFUSED, UNTESTED

CHUNKS = 6
SLOW_CHUNKS = 24
NOT_TRANSPOSED = {*REFUSED, *FALLBACK}  # there is no PyTorch's forward mode to fall back to
TORCH_DIFFERS = {
    "as_strided_scatter": "its gradient by the tensor written into includes what was overwritten, if that is a number",
    "linalg.lstsq": "its gradient leaves out that of the residuals",
    "nn.functional.max_unpool1d": "where several entries go to one place, each gets the cotangent of that which stayed",
    "nn.functional.max_unpool2d": "likewise",
    "nn.functional.max_unpool3d": "likewise",
}
"""Where forward mode, which differences confirm, and its transpose agree with each other, but not with autograd."""


@pytest.fixture(scope="module")
def harness() -> Any:
    pytest.importorskip("expecttest", reason="the operator database of PyTorch needs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import op_tape
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield op_tape
    torch.set_num_threads(threads)


def _examine_chunk(harness: Any, chunk: int, chunks: int, limit: int | None) -> None:
    from op_samples import entries

    reports = [harness.examine_tape(op, limit) for op in entries()[chunk::chunks]]
    assert sum(report.samples for report in reports) > 0
    assert [(r.name, r.notes[:1]) for r in reports if r.status == "FAIL"] == []
    assert {r.name for r in reports if r.status == "refused"} <= NOT_TRANSPOSED
    assert {r.name for r in reports if r.status == "untested"} <= UNTESTED
    assert {r.name for r in reports if r.status == "rule" and r.notes} <= TORCH_DIFFERS.keys()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_sample_of_each_entry(harness: Any, chunk: int) -> None:
    _examine_chunk(harness, chunk, CHUNKS, limit=1)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(SLOW_CHUNKS))
def test_every_sample(harness: Any, chunk: int) -> None:
    _examine_chunk(harness, chunk, SLOW_CHUNKS, limit=None)


def _entry(name: str) -> Any:
    from op_samples import entries, name_of

    return next(op for op in entries() if name_of(op) == name)


@pytest.mark.parametrize(
    ("name", "operation"), [("sin", "mul"), ("cumsum", "cumsum"), ("gather", "gather"), ("bmm", "bmm")]
)
def test_a_transpose_wrong_by_a_thousandth_fails(
    harness: Any, monkeypatch: pytest.MonkeyPatch, name: str, operation: str
) -> None:
    from fwdgrad.dual.tape.table import TRANSPOSES
    from fwdgrad.dual.tape.variable import RECORDERS

    op = getattr(torch.ops.aten, operation)
    assert harness.examine_tape(_entry(name)).status == "rule"
    right = TRANSPOSES[op].pulls
    wrong = [None if pull is None else lambda u, *a, pull=pull, **k: pull(u, *a, **k) * 1.001 for pull in right]
    monkeypatch.setitem(TRANSPOSES, op, TRANSPOSES[op]._replace(pulls=tuple(wrong)))
    for overload in op.overloads():
        RECORDERS.pop(getattr(op, overload), None)
    try:
        report = harness.examine_tape(_entry(name))
    finally:
        for overload in op.overloads():
            RECORDERS.pop(getattr(op, overload), None)
    assert report.status == "FAIL" and "<u, Jv> =" in report.notes[0]
