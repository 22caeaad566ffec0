"""Checks of a rule: against reverse mode, differences and its own transpose, K directions against single ones.

``check(fn, *inputs)`` takes float64 or complex128 tensors, all differentiated, and a function of them with one output
or several; it raises AssertionError on the first disagreement. A rule that is wrong by 0.1 % must fail it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fwdgrad.dual.api import plain
from fwdgrad.dual.reverse import Tape
from fwdgrad.dual.running import evaluation
from fwdgrad.dual.tensor import Dual, seed, tangent

RTOL = 1e-9
DIFFERENCE_RTOL = 1e-5


def directions(
    fn: Callable[..., Any], inputs: tuple[Tensor, ...], tangents: tuple[Any, ...], fallback: str = "error"
) -> tuple[list[Any], list[Tensor | None]]:
    """Run ``fn`` on inputs with tangents (K, *shape), dense or structured (None: a constant).

    Returns:
        The outputs, and for each its tangents (K, *output.shape), or None where it has none.
    """
    count = next(t.num_directions if hasattr(t, "num_directions") else len(t) for t in tangents if t is not None)
    with evaluation(count, fallback):
        arguments = [x.detach() if t is None else seed(x, t) for x, t in zip(inputs, tangents, strict=True)]
        outputs = tree_leaves(fn(*arguments))
        with torch._C.DisableTorchFunctionSubclass():
            pushed = [tangent(y) for y in outputs]
            for y in outputs:
                _assert_own_memory(y, arguments)
        return [plain(y) for y in outputs], pushed


def check(
    fn: Callable[..., Any],
    *inputs: Tensor,
    num_directions: int = 3,
    differences: bool = True,
    reverse: bool = True,
    tape: bool = True,
    seed: int = 0,
    rtol: float = RTOL,
) -> None:
    """Raise AssertionError unless the rules that ``fn`` uses agree with reverse mode, differences and themselves.

    Args:
        fn: a deterministic function; what it changes in place must be of its own making.
        inputs: where it is differentiated.
        num_directions: K of the batched run that is compared with K single ones.
        differences: whether to compare with central differences; not near a kink.
        reverse: whether to compare with ``torch.autograd``; not where it is wrong or missing.
        tape: whether to pull a cotangent back through the recorded tangents; not where one is refused.
        seed: of the directions and of the output weights.
        rtol: tolerance against reverse mode, relative to the size of the terms.
    """
    generator = torch.Generator().manual_seed(seed)
    vs = tuple(_randn((num_directions, *x.shape), x, generator) for x in inputs)
    before = torch._C._autograd._get_sequence_nr()
    outputs, pushed = directions(fn, inputs, vs)
    assert torch._C._autograd._get_sequence_nr() == before, "an autograd node was created"
    expected = tree_leaves(fn(*[x.detach().clone() for x in inputs]))
    assert len(outputs) == len(expected), f"{len(outputs)} outputs, expected {len(expected)}"
    for y, z in zip(outputs, expected, strict=True):
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12, msg=lambda m: f"value: {m}")
    for k in range(num_directions):
        single_outputs, single = directions(fn, inputs, tuple(v[k : k + 1] for v in vs))
        _assert_tangents(pushed, single, single_outputs, k)
        if reverse:
            _check_reverse(fn, inputs, [v[k] for v in vs], pushed, k, generator, rtol)
        if differences:
            _check_differences(fn, inputs, [v[k] for v in vs], pushed, k)
    if tape:
        _check_tape(fn, inputs, vs, outputs, pushed, generator, rtol)
    if len(inputs) > 1:  # each argument alone, the others plain: mixed dual and plain arguments, summed, give the whole
        _check_one_by_one(fn, inputs, vs, outputs, pushed)


def _randn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, generator=generator)


def _or_zero(t: Tensor | None, count: int, y: Any) -> Tensor | None:
    if not isinstance(y, Tensor) or not (y.is_floating_point() or y.is_complex()):
        assert t is None, f"a tangent on a result of dtype {getattr(y, 'dtype', type(y))}"
        return None
    if t is None:
        return torch.zeros((count, *y.shape), dtype=y.dtype)
    assert t.shape == (count, *y.shape), f"tangents of shape {tuple(t.shape)} for a result {tuple(y.shape)}, K={count}"
    assert t.dtype == y.dtype, f"tangents of dtype {t.dtype} for a result {y.dtype}"
    return t


def _assert_tangents(pushed: list[Any], single: list[Any], outputs: list[Any], k: int) -> None:
    for i, (many, one, y) in enumerate(zip(pushed, single, outputs, strict=True)):
        one = _or_zero(one, 1, y)
        if one is not None:
            many = torch.zeros_like(one) if many is None else many[k : k + 1]
            torch.testing.assert_close(
                many, one, rtol=1e-10, atol=1e-10, msg=lambda m, i=i: f"K and 1, output {i}: {m}"
            )


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a.conj() * b).real.sum())


def _check_reverse(
    fn: Any, inputs: Any, v: list[Tensor], pushed: list[Any], k: int, generator: torch.Generator, rtol: float
) -> None:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    copies = [x * 1 for x in leaves]  # not leaves, so that fn may write in place
    for i, y in enumerate(tree_leaves(fn(*copies))):
        t = pushed[i]
        if not isinstance(y, Tensor) or not y.requires_grad:
            assert t is None or not t.any(), f"output {i} has a tangent, but no gradient in reverse mode"
            continue
        u = _randn(tuple(y.shape), y, generator)
        gradients = torch.autograd.grad(y, leaves, u, retain_graph=True, allow_unused=True)
        pairs = [(g, w) for g, w in zip(gradients, v, strict=True) if g is not None]
        backward = sum(_inner(g, w) for g, w in pairs)
        forward = 0.0 if t is None else _inner(u, t[k])
        scale = max(1e-3, sum(float((g.abs() * w.abs()).sum()) for g, w in pairs))
        assert abs(forward - backward) <= rtol * scale, f"output {i}: <u, Jv> = {forward}, <J'u, v> = {backward}"


def _check_tape(
    fn: Any, inputs: Any, vs: Any, outputs: list[Any], pushed: list[Any], generator: torch.Generator, rtol: float
) -> None:
    recorded = Tape(lambda duals: ([y for y in tree_leaves(fn(*duals)) if isinstance(y, Tensor)], None), inputs)
    us = [
        _randn(tuple(y.shape), y, generator) if y.is_floating_point() or y.is_complex() else None
        for y in recorded.outputs
    ]
    pulled = [(g, v) for g, v in zip(recorded.pull_back(us), vs, strict=True) if g is not None]
    tensors = [t for t, y in zip(pushed, outputs, strict=True) if isinstance(y, Tensor)]
    pairs = [(u, t) for u, t in zip(us, tensors, strict=True) if u is not None and t is not None]
    for k in range(len(vs[0])):
        forward = sum(_inner(u, t[k]) for u, t in pairs)
        backward = sum(_inner(g, v[k]) for g, v in pulled)
        scale = max(1e-3, sum(float((g.abs() * v[k].abs()).sum()) for g, v in pulled))
        assert abs(forward - backward) <= rtol * scale, f"tape: <u, Jv> = {forward}, <J'u, v> = {backward}"


def _check_differences(fn: Any, inputs: Any, v: list[Tensor], pushed: list[Any], k: int) -> None:
    h = 1e-5
    plus = tree_leaves(fn(*[x + h * w for x, w in zip(inputs, v, strict=True)]))
    minus = tree_leaves(fn(*[x - h * w for x, w in zip(inputs, v, strict=True)]))
    for i, (a, b) in enumerate(zip(plus, minus, strict=True)):
        if isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex()):
            quotient = (a - b) / (2 * h)
            t = torch.zeros_like(quotient) if pushed[i] is None else pushed[i][k]
            scale = max(1.0, float(quotient.abs().max()) if quotient.numel() else 1.0)
            torch.testing.assert_close(
                t,
                quotient,
                rtol=DIFFERENCE_RTOL,
                atol=DIFFERENCE_RTOL * scale,
                msg=lambda m, i=i: f"differences, {i}: {m}",
            )


def _check_one_by_one(fn: Any, inputs: Any, vs: Any, outputs: list[Any], pushed: list[Any]) -> None:
    totals: list[Any] = [None] * len(outputs)
    for j in range(len(inputs)):
        _, partial = directions(fn, inputs, tuple(v if i == j else None for i, v in enumerate(vs)))
        totals = [p if t is None else t if p is None else t + p for t, p in zip(totals, partial, strict=True)]
    for i, (total, whole, y) in enumerate(zip(totals, pushed, outputs, strict=True)):
        total, whole = _or_zero(total, len(vs[0]), y), _or_zero(whole, len(vs[0]), y)
        if total is not None:
            torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-9, msg=lambda m, i=i: f"one by one, {i}: {m}")


def _assert_own_memory(y: Any, arguments: list[Tensor]) -> None:
    """A tangent is new memory, or it is marked as shared, or the result is a view whose tangent views likewise."""
    if type(y) is not Dual or y._shared or y._root is not None or not isinstance(y._tangent, Tensor):
        return
    memory = y._tangent.untyped_storage()._cdata
    for x in arguments:
        if type(x) is Dual and x is not y and isinstance(x._tangent, Tensor):
            assert x._tangent.untyped_storage()._cdata != memory, "the tangent is an argument's own: use dual_sharing"
