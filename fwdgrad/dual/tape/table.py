"""The table of transposes: how an entry gets in, and what an operation on Variables does with it.

    transpose(aten.mul, lambda u, x, y: u * conj(y), lambda u, x, y: u * conj(x))        linear in x, and in y
    transpose(aten.add, lambda u, x, y, alpha=1: u, lambda u, x, y, alpha=1: u * conj(alpha), terms=((0,), (1,)))
    transpose(aten.flip, lambda u, x, dims: u.flip(dims))

One function for each argument that the operation is linear in (None for the others): from the cotangent u of the
result, and the arguments, to the cotangent of that argument; in the place of Variables stand their ``Value``s. What
broadcasting and promotion did is undone afterwards. ``terms`` says which arguments are multiplied with each other:
((0, 1),) for a product, the default; ((0,), (1,)) for a sum, ((0,), (1, 2)) for x + y z. In each term at most one
argument may be a Variable, and a term without any must be zero: otherwise the operation is not linear here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.variable import RECORDERS

Pull = Callable[..., Any]
TRANSPOSES: dict[Any, tuple[tuple[Pull | None, ...], tuple[tuple[int, ...], ...]]] = {}
"""From a basic operation (or one overload of it) to the transposes by argument, and its terms."""

aten: Any = torch.ops.aten


def transpose(op: Any, *pulls: Pull | None, terms: tuple[tuple[int, ...], ...] | None = None) -> None:
    """Enter the transposes of a linear basic operation, by argument; see the head of this file.

    Args:
        op: an operation of ``torch.ops``, or one of its overloads.
        pulls: for each argument, ``pull(u, *args, **kwargs)``, or None.
        terms: which arguments are multiplied with each other.
    """
    if terms is None:
        terms = (tuple(i for i, pull in enumerate(pulls) if pull is not None),)
    TRANSPOSES[op] = (pulls, terms)
    for overload in [op] if isinstance(op, torch._ops.OpOverload) else [getattr(op, name) for name in op.overloads()]:
        RECORDERS.pop(overload, None)


def custom(*ops: Any) -> Callable[[Pull], Pull]:
    """Enter what overloads of basic operations do with Variables, where they are not functions to be transposed."""

    def enter(recorder: Pull) -> Pull:
        for op in ops:
            RECORDERS[op] = recorder
        return recorder

    return enter


def conj(x: Any) -> Any:
    """Return the complex conjugate of a tensor or number."""
    return torch.conj_physical(x) if isinstance(x, Tensor) else x.conjugate()
