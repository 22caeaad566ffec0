"""Run reverse mode on PyTorch's own sample inputs: the transpose of our forward mode, and PyTorch's gradient.

``examine_tape(op)`` pulls random cotangents u of all outputs of an entry back, and compares with our own forward mode,
<u, Jv> = <J'u, v>, and with the gradients of ``torch.autograd``, entry by entry. Where PyTorch's reverse mode differs
from both of ours, it is noted: the forward rules are checked against differences there (``op_db``). An entry is then

    rule      right on every sample
    refused   a DualError on at least one sample (never a wrong number), all others are right
    FAIL      another cotangent, or an error that is not a refusal
    untested  none of its samples can be differentiated here
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from op_db import _TOLERANCES, NUM_DIRECTIONS, RTOL, Report, _inner, _is_real_or_complex, _randn
from op_samples import Sample, dtypes_of, name_of, samples_of
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fwdgrad.dual.reverse import Tape
from fwdgrad.dual.running import evaluation
from fwdgrad.dual.tensor import DualError, seed, tangent


def examine_tape(op: Any, limit: int | None = 1, variants: bool = True) -> Report:
    """Pull cotangents back through an entry of the database on its samples and report how it went.

    Args:
        op: the entry.
        limit: how many sample inputs to take of each dtype; None: all.
        variants: whether methods and in-place calls are examined too.
    """
    report = Report(name_of(op))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes_of(op):
            for sample in samples_of(op, dtype, limit, variants):
                _examine_sample(sample, report)
    if report.samples == 0:
        report.status = "untested"
    return report


def _examine_sample(sample: Sample, report: Report) -> None:
    where = f"{str(sample.inputs[0].dtype)[6:]} {sample.text}"[:160]
    try:
        expected = tree_leaves(sample.function(*[x * 1 for x in sample.inputs]))
    except (RuntimeError, NotImplementedError):
        return
    generator = torch.Generator().manual_seed(1)
    vs = [_randn((NUM_DIRECTIONS, *x.shape), x, generator) for x in sample.inputs]
    weights = [_randn(tuple(y.shape), y, generator) if _is_real_or_complex(y) else None for y in expected]
    if not any(w is not None for w in weights):
        return
    report.samples += 1
    node = torch._C._autograd._get_sequence_nr()
    try:
        pulled, outputs = _ours(sample, weights, expected)
        created = torch._C._autograd._get_sequence_nr() - node
        forward = _forward(sample, vs, weights)
    except DualError as error:
        report.refused += 1
        report.meet("refused", str(error).splitlines()[0][:200])
        return
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:160]
        report.meet("FAIL", f"{type(error).__name__}: {text} ({where})")
        return
    problem = f"{created} autograd nodes were created" if created else _malformed(pulled, sample, outputs, expected)
    if problem is None:
        tolerance = max(_TOLERANCES[x.dtype] for x in (*vs, *weights) if x is not None)
        problem = _compare(pulled, forward, _autograd(sample, weights), vs, tolerance, report)
    if problem is not None:
        report.meet("FAIL", f"{problem} ({where})")


def _ours(
    sample: Sample, weights: list[Tensor | None], expected: list[Any]
) -> tuple[list[Tensor | None], list[Tensor]]:
    def function(duals: list[Any]) -> tuple[Any, None]:
        return [y for y in tree_leaves(sample.function(*duals)) if isinstance(y, Tensor)], None

    tape = Tape(function, list(sample.inputs))
    kept = [u for u, y in zip(weights, expected, strict=True) if isinstance(y, Tensor)]
    return tape.pull_back(kept), tape.outputs


def _forward(sample: Sample, vs: list[Tensor], weights: list[Tensor | None]) -> list[float]:
    """Return <u, Jv> for each direction."""
    with evaluation(NUM_DIRECTIONS, "silent"):
        outputs = tree_leaves(sample.function(*[seed(x, v) for x, v in zip(sample.inputs, vs, strict=True)]))
        with torch._C.DisableTorchFunctionSubclass():
            pushed = [(u, t) for u, y in zip(weights, outputs, strict=True) if (t := tangent(y)) is not None]
            return [sum(_inner(u, t[k]) for u, t in pushed if u is not None) for k in range(NUM_DIRECTIONS)]


def _autograd(sample: Sample, weights: list[Tensor | None]) -> list[Tensor | None] | None:
    leaves = [x.detach().clone().requires_grad_() for x in sample.inputs]
    try:
        outputs = tree_leaves(sample.function(*[x * 1 for x in leaves]))
        pairs = [(y, u) for y, u in zip(outputs, weights, strict=True) if u is not None and y.requires_grad]
        if not pairs:
            return [None] * len(leaves)
        return list(torch.autograd.grad([y for y, _ in pairs], leaves, [u for _, u in pairs], allow_unused=True))
    except (RuntimeError, NotImplementedError):
        return None


def _malformed(pulled: list[Tensor | None], sample: Sample, outputs: list[Tensor], expected: list[Any]) -> str | None:
    for i, (g, x) in enumerate(zip(pulled, sample.inputs, strict=True)):
        if g is not None and (g.shape != x.shape or g.dtype is not x.dtype):
            return f"input {i} {x.dtype} {tuple(x.shape)} has a cotangent {g.dtype} {tuple(g.shape)}"
    for i, (y, z) in enumerate(zip(outputs, [z for z in expected if isinstance(z, Tensor)], strict=True)):
        if _is_real_or_complex(z) and not torch.allclose(y, z, rtol=1e-9, atol=1e-9, equal_nan=True):
            return f"output {i} has another value"
    return None


def _all_finite(gradients: list[Tensor | None] | None) -> bool:
    return gradients is not None and all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


def _compare(
    pulled: list[Tensor | None],
    forward: list[float],
    gradients: list[Tensor | None] | None,
    vs: list[Tensor],
    tolerance: float,
    report: Report,
) -> str | None:
    for k, value in enumerate(forward):
        pairs = [(g, v[k]) for g, v in zip(pulled, vs, strict=True) if g is not None]
        back = sum(_inner(g, v) for g, v in pairs)
        size = max(1e-3, sum(float((g.abs() * v.abs()).sum()) for g, v in pairs))
        if value == back:
            continue
        if not abs(value) < float("inf") or (not abs(back) < float("inf") and not _all_finite(gradients)):
            report.undecided += 1
            continue
        if not abs(value - back) <= tolerance * size:
            return f"<u, Jv> = {value:.6g}, <J'u, v> = {back:.6g}"
        report.error = max(report.error, abs(value - back) / size if tolerance == RTOL else 0.0)
    for i, (ours, theirs) in enumerate(zip(pulled, gradients or [], strict=False)):
        a, b = (torch.zeros_like(vs[i][0]) if g is None else g for g in (ours, theirs))
        finite = torch.isfinite(a) & torch.isfinite(b)
        distance = (a - b)[finite].abs()
        if distance.numel() and distance.max() > tolerance * max(1e-3, float(b[finite].abs().max())):
            report.notes.append(f"PyTorch's gradient by input {i} differs")
    return None
