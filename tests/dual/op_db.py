"""Run the dual engine on PyTorch's own sample inputs, operation by operation, and say how each was served.

An entry of PyTorch's operator database comes with inputs chosen to be awkward: empty and 0-dimensional tensors, ties,
broadcasting, negative strides. ``examine(op)`` differentiates an entry on some of them, as a function, a method and in
place, along two directions at once, and compares with reverse mode, <u, Jv> = <J'u, v>; where these differ, or reverse
mode fails, central differences decide. An entry is then

    rule      served by rules of ours on every sample
    fallback  right on every sample, but at least once by PyTorch's forward mode
    refused   a DualError on at least one sample (never a wrong number)
    FAIL      a wrong tangent, or an error that is not a refusal
    untested  none of its samples can be differentiated here

PyTorch's own forward mode is put through the same comparison.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from checks import _assert_own_memory
from op_samples import Sample, dtypes_of, name_of, samples_of
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from fwdgrad.dual.api import plain
from fwdgrad.dual.fallback import fallback_counts
from fwdgrad.dual.running import evaluation
from fwdgrad.dual.tensor import DualError, seed, tangent

RTOL = 1e-7
DIFFERENCE_RTOL = 1e-4
STEPS = (1e-5, 1e-6, 1e-7, 1e-8)  # the smaller ones where a kink is near
NUM_DIRECTIONS = 2
ALONE = 4  # up to so many inputs are also differentiated by one at a time
ORDER = ("rule", "fallback", "refused", "FAIL", "untested")

_TOLERANCES = {torch.float64: RTOL, torch.complex128: RTOL, torch.float32: 1e-3, torch.complex64: 1e-3}
_TOLERANCES |= dict.fromkeys((torch.float16, torch.bfloat16, torch.complex32), 2e-2)


@dataclass
class Report:
    """What became of one entry."""

    name: str
    status: str = "rule"
    samples: int = 0
    refused: int = 0
    undecided: int = 0
    error: float = 0.0
    fallbacks: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    forward: str = "supported"

    def meet(self, status: str, note: str = "") -> None:
        """Lower the entry to a status, if it is the worse one."""
        self.status = max(self.status, status, key=ORDER.index)
        if note and note not in self.notes:
            self.notes.append(note)


def examine(op: Any, limit: int | None = 4, variants: bool = True, forward: bool = False) -> Report:
    """Differentiate an entry of the database on its samples and report how it was served.

    Args:
        op: the entry.
        limit: how many sample inputs to take of each dtype; None: all.
        variants: whether methods and in-place calls are examined too.
        forward: whether PyTorch's own forward mode is examined as well.
    """
    report = Report(name_of(op))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes_of(op):
            for sample in samples_of(op, dtype, limit, variants):
                _examine_sample(sample, report, forward)
    if report.samples == 0:
        report.status = report.forward = "untested"
    return report


def _examine_sample(sample: Sample, report: Report, forward: bool) -> None:
    where = f"{str(sample.inputs[0].dtype)[6:]} {sample.text}"[:160]
    try:
        expected = tree_leaves(sample.function(*[x * 1 for x in sample.inputs]))
    except (RuntimeError, NotImplementedError):
        return  # the entry does not work this way on this PyTorch, with or without tangents
    generator = torch.Generator().manual_seed(1)
    vs = tuple(_randn((NUM_DIRECTIONS, *x.shape), x, generator) for x in sample.inputs)
    weights = [_randn(tuple(y.shape), y, generator) if _is_real_or_complex(y) else None for y in expected]
    if not any(w is not None for w in weights):
        return
    report.samples += 1
    reverse = _reverse(sample, vs, weights)
    if forward and report.forward != "wrong":
        _examine_forward(sample, vs, weights, reverse, report)
    before = fallback_counts()
    node = torch._C._autograd._get_sequence_nr()
    try:
        outputs, pushed = _ours(sample, vs)
        parts = _one_by_one(sample, vs) if 1 < len(vs) <= ALONE else None
    except DualError as error:
        report.refused += 1
        report.meet("refused", str(error).splitlines()[0][:200])
        return
    except Exception as error:
        report.meet(
            "FAIL", f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''} ({where})"
        )
        return
    used = {name for name, count in fallback_counts().items() if count > before.get(name, 0)}
    if used:
        report.fallbacks |= used
        report.meet("fallback")
    if torch._C._autograd._get_sequence_nr() != node:
        report.meet("FAIL", f"an autograd node was created ({where})")
    problem = _compare_values(outputs, expected) or _malformed(outputs, pushed)
    if problem is None:
        problem = _compare_tangents(sample, vs, weights, pushed, reverse, report)
    if problem is None and parts is not None:
        problem = _compare_parts(parts, pushed)
    if problem is not None:
        report.meet("FAIL", f"{problem} ({where})")


def _is_real_or_complex(y: Any) -> bool:
    return isinstance(y, Tensor) and (y.is_floating_point() or y.is_complex()) and y.layout is torch.strided


def _randn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    dtype = like.dtype if like.dtype in (torch.float64, torch.complex128) else torch.float32
    return torch.randn(shape, dtype=dtype, generator=generator).to(like.dtype)


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a.conj() * b).real.sum())


def _ours(sample: Sample, vs: tuple[Tensor | None, ...]) -> tuple[list[Any], list[Tensor | None]]:
    with evaluation(NUM_DIRECTIONS, "silent"):
        arguments = [x if v is None else seed(x, v) for x, v in zip(sample.inputs, vs, strict=True)]
        outputs = tree_leaves(sample.function(*arguments))
        with torch._C.DisableTorchFunctionSubclass():
            pushed = [tangent(y) for y in outputs]
            for y in outputs:
                if isinstance(y, Tensor) and y.numel():
                    _assert_own_memory(y, arguments)
            return [plain(y) for y in outputs], pushed


def _one_by_one(sample: Sample, vs: tuple[Tensor, ...]) -> list[list[Tensor | None]]:
    """Return the tangents with one input dual and the others plain, for each."""
    return [_ours(sample, tuple(v if i == j else None for i, v in enumerate(vs)))[1] for j in range(len(vs))]


def _compare_parts(parts: list[list[Tensor | None]], pushed: list[Tensor | None]) -> str | None:
    for i, whole in enumerate(pushed):
        terms = [t for t in (part[i] for part in parts) if t is not None]
        total = sum(terms[1:], terms[0]) if terms else None
        if total is None and whole is None:
            continue
        a, b = (torch.zeros_like(whole if total is None else total) if t is None else t for t in (total, whole))
        size = max([1.0, *[float(t.abs().nan_to_num(0, 0, 0).max()) for t in terms if t.numel()]])
        finite = torch.isfinite(a) & torch.isfinite(b)
        if not ((a - b)[finite].abs() <= _TOLERANCES[a.dtype] * size).all():
            return f"output {i}: the tangents by one input at a time do not add up"
    return None


def _reverse(sample: Sample, vs: tuple[Tensor, ...], weights: list[Tensor | None]) -> list[Any] | None:
    """Return for each output and direction <J'u, v> with the size of its terms, or None where reverse mode fails."""
    leaves = [x.detach().clone().requires_grad_() for x in sample.inputs]
    try:
        outputs = tree_leaves(sample.function(*[x * 1 for x in leaves]))
        found: list[Any] = []
        for y, u in zip(outputs, weights, strict=True):
            if u is None or not y.requires_grad:
                found.append([(0.0, 0.0)] * NUM_DIRECTIONS)
                continue
            gradients = torch.autograd.grad(y, leaves, u, retain_graph=True, allow_unused=True)
            pairs = [(g, v) for g, v in zip(gradients, vs, strict=True) if g is not None]
            found.append(
                [
                    (
                        sum(_inner(g, v[k]) for g, v in pairs),
                        sum(float((g.abs() * v[k].abs()).sum()) for g, v in pairs),
                    )
                    for k in range(NUM_DIRECTIONS)
                ]
            )
        return found
    except (RuntimeError, NotImplementedError):
        return None


def _compare_values(outputs: list[Any], expected: list[Any]) -> str | None:
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs, expected {len(expected)}"
    for i, (y, z) in enumerate(zip(outputs, expected, strict=True)):
        if isinstance(y, Tensor) and isinstance(z, Tensor):
            if y.dtype is not z.dtype or y.shape != z.shape:
                return f"output {i} is {y.dtype} {tuple(y.shape)}, expected {z.dtype} {tuple(z.shape)}"
            if _is_real_or_complex(y) and not torch.allclose(y, z, rtol=1e-9, atol=1e-9, equal_nan=True):
                return f"output {i} has another value"
    return None


def _malformed(outputs: list[Any], pushed: list[Tensor | None]) -> str | None:
    for i, (y, t) in enumerate(zip(outputs, pushed, strict=True)):
        if t is not None and (t.shape != (NUM_DIRECTIONS, *y.shape) or t.dtype is not y.dtype):
            return f"output {i} {y.dtype} {tuple(y.shape)} has tangents {t.dtype} {tuple(t.shape)}"
    return None


def _compare_tangents(
    sample: Sample,
    vs: tuple[Tensor, ...],
    weights: list[Tensor | None],
    pushed: list[Tensor | None],
    reverse: list[Any] | None,
    report: Report,
) -> str | None:
    """Return what is wrong with tangents, or None; note the worst error and what could not be decided."""
    quotients: dict[tuple[int, float], list[Any]] = {}
    for i, (u, t) in enumerate(zip(weights, pushed, strict=True)):
        if u is None:
            if t is not None:
                return f"output {i} has no derivative, but a tangent"
            continue
        tolerance = max(_TOLERANCES[x.dtype] for x in (u, *vs))
        for k in range(NUM_DIRECTIONS):
            ours = 0.0 if t is None else _inner(u, t[k])
            if reverse is not None:
                value, size = reverse[i][k]
                if ours == value:
                    continue
                error = abs(ours - value) / max(size, 1e-3)
                if error <= tolerance:
                    report.error = max(report.error, error if tolerance == RTOL else 0.0)
                    continue
            verdict: bool | None = False
            distances = []
            for step in STEPS:
                if (k, step) not in quotients:
                    quotients[k, step] = _differences(sample, [v[k] for v in vs], step)
                quotient = quotients[k, step][i]
                if verdict is False:
                    verdict = _agrees(quotient, t, k)
                if reverse is not None:
                    distances.append((abs(ours - _inner(u, quotient)), abs(reverse[i][k][0] - _inner(u, quotient))))
            if distances and min(d[1] for d in distances) < 0.3 * min(d[0] for d in distances):
                verdict = False  # differences side with reverse mode
            if verdict is None:
                report.undecided += 1
            elif not verdict:
                backward = "fails" if reverse is None else f"{reverse[i][k][0]:.6g}"
                return f"output {i}: <u, Jv> = {ours:.6g}, reverse mode {backward}, differences differ too"
    return None


def _differences(sample: Sample, v: list[Tensor], step: float) -> list[Any]:
    plus = tree_leaves(sample.function(*[x + step * w for x, w in zip(sample.inputs, v, strict=True)]))
    minus = tree_leaves(sample.function(*[x - step * w for x, w in zip(sample.inputs, v, strict=True)]))
    return [(a - b) / (2 * step) if _is_real_or_complex(a) else None for a, b in zip(plus, minus, strict=True)]


def _agrees(quotient: Tensor, t: Tensor | None, k: int) -> bool | None:
    """Compare tangents with differences where these are finite; None if there is nothing to compare."""
    pushed = torch.zeros_like(quotient) if t is None else t[k]
    finite = torch.isfinite(quotient)
    if not finite.any():
        return None
    scale = max(1.0, float(quotient[finite].abs().max()))
    return bool(((pushed - quotient)[finite].abs() <= DIFFERENCE_RTOL * scale).all())


def _examine_forward(
    sample: Sample, vs: tuple[Tensor, ...], weights: list[Tensor | None], reverse: list[Any] | None, report: Report
) -> None:
    pushed: list[list[Tensor | None]] = []
    try:
        for k in range(NUM_DIRECTIONS):
            with torch.no_grad(), forward_ad.dual_level():
                duals = [forward_ad.make_dual(x.clone(), v[k]) for x, v in zip(sample.inputs, vs, strict=True)]
                outputs = tree_leaves(sample.function(*duals))
                pushed.append([forward_ad.unpack_dual(y).tangent if _is_real_or_complex(y) else None for y in outputs])
    except (RuntimeError, NotImplementedError):
        report.forward = "refuses"
        return
    stacked = [None if parts[0] is None else torch.stack(parts) for parts in zip(*pushed, strict=True)]
    if _compare_tangents(sample, vs, weights, stacked, reverse, Report("")) is not None:
        report.forward = "wrong"
