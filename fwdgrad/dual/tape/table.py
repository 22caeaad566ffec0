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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fwdgrad.dual.tape.variable import RECORDERS

Pull = Callable[..., Any]
Shape = Callable[..., Any]


class Entry(NamedTuple):
    """What the table knows about a basic operation."""

    pulls: tuple[Pull | None, ...]
    terms: tuple[tuple[int, ...], ...]
    shape: Shape | None


TRANSPOSES: dict[Any, Entry] = {}
"""From a basic operation, or one overload of it, to its transposes by argument."""

aten: Any = torch.ops.aten


def transpose(
    op: Any, *pulls: Pull | None, terms: tuple[tuple[int, ...], ...] | None = None, shape: Shape | None = None
) -> None:
    """Enter the transposes of a linear basic operation, by argument; see the head of this file.

    Args:
        op: an operation of ``torch.ops``, or one of its overloads.
        pulls: for each argument, ``pull(u, *args, **kwargs)``, or None.
        terms: which arguments are multiplied with each other.
        shape: ``shape(*args, **kwargs)`` of the result, a list of them if there are several, or None if their dtype is
            not that of the arguments. It only saves the time to find that out on the meta device.
    """
    if terms is None:
        terms = (tuple(i for i, pull in enumerate(pulls) if pull is not None),)
    TRANSPOSES[op] = Entry(pulls, terms, shape)
    for overload in [op] if isinstance(op, torch._ops.OpOverload) else [getattr(op, name) for name in op.overloads()]:
        RECORDERS.pop(overload, None)


def custom(*ops: Any) -> Callable[[Pull], Pull]:
    """Enter what overloads of basic operations do with Variables, where they are not functions to be transposed."""

    def enter(recorder: Pull) -> Pull:
        for op in ops:
            RECORDERS[op] = recorder
        return recorder

    return enter


def broadcast(*args: Any, **kwargs: Any) -> torch.Size | None:
    """Return the common shape of the tensors among the arguments, or None if they are not of one dtype."""
    shape = dtype = None
    for a in args:
        if isinstance(a, Tensor):
            if dtype is None:
                shape, dtype = a.shape, a.dtype
            elif a.dtype is not dtype:
                return None
            elif shape is not None and a.shape != shape:
                shape = torch._C._infer_size(shape, a.shape)
        elif isinstance(a, complex):
            return None
    return shape


def conj(x: Any) -> Any:
    """Return the complex conjugate of a tensor or number."""
    return torch.conj_physical(x) if isinstance(x, Tensor) else x.conjugate()
