"""The tangent that is not computed but recorded: a tensor without memory that notes every operation on it.

In reverse mode each input's tangent is a ``Variable``, of shape (1, *shape), and the function runs on Duals by the
same rules as in forward mode. PyTorch hands each of its basic operations (ATen) that meets a Variable to
``Variable.__torch_dispatch__``, in which ``table`` says how it is transposed. No entry there: the operation is not
linear, or not known to be, and is refused.

In-place operations are those out of place, after which the Variable stands for another value. A view knows its root
and the way to it; a write to the view is one to the root, and other views look their values up anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.graph import Node, Value

RECORDERS: dict[Any, Callable[..., Any]] = {}
"""From each overload of a basic operation to what is done when it meets a Variable."""


class Variable(Tensor):
    """A tangent of which only shape, dtype and layout exist; ``value`` tells what it stands for."""

    _value: Value
    _root: Variable | None = None  # the Variable that this one is a view of
    _step: Callable[[Any], Any]  # from the tensor that this was made of to this view
    _parent: Variable | None = None
    _epoch = 0  # how often the root had been written to when the value was looked up
    _writes = 0
    _shape_only: Tensor | None = None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = RECORDERS.get(func)
        if recorder is None:
            recorder = _resolve(func)
        if kwargs:
            return recorder(*args, **kwargs)
        return recorder(*args)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Variable(shape={tuple(self.shape)}, dtype={self.dtype})"


def _resolve(func: Any) -> Callable[..., Any]:
    from fwdgrad.dual.tape.recording import resolve

    return resolve(func)


def variable(value: Value, stride: Any = None, offset: Any = None) -> Variable:
    """Return a Variable that stands for a value."""
    out: Variable = Tensor._make_wrapper_subclass(
        Variable, value.shape, stride, offset, dtype=value.dtype, device=value.device
    )
    out._value = value
    return out


def zeros(shape: Any, dtype: torch.dtype, device: torch.device, stride: Any = None) -> Variable:
    """Return a Variable that stands for zero, to be written to."""
    return variable(Value(torch.Size(shape), dtype, device, is_zero=True), stride)


def view(parent: Variable, value: Value, meta: Tensor, step: Callable[[Any], Any]) -> Variable:
    """Return a view of a Variable, which ``step`` makes of any tensor in its place."""
    out = variable(value, meta.stride(), meta.storage_offset())
    out._shape_only = meta
    out._parent = parent
    out._step = step
    out._root = root = parent if parent._root is None else parent._root
    out._epoch = root._writes
    stride = meta.stride()
    value.is_transposed = len(stride) > 1 and stride[-2] == 1 and meta.shape[-1] != 1
    return out


def value_of(x: Variable) -> Value:
    """Return what a Variable stands for now."""
    root = x._root
    if root is not None and x._epoch != root._writes:
        again = x._step(x._parent)  # recorded like any other view
        x._value = again._value
        x._epoch = root._writes
    return x._value


def assign(x: Variable, value: Value, name: str) -> None:
    """Let a Variable, and all it shares memory with, stand for another value where it is."""
    root = x._root
    if root is None:
        x._value = value
        x._writes += 1
        return
    steps = []
    place: Variable = x
    while place._parent is not None:
        steps.append(place._step)
        place = place._parent
    steps.reverse()
    whole = x.numel() * x.element_size() == root.numel() * root.element_size()
    node = Node(name, (value_of(root), value), _pull_put, (root.stride(), steps, whole), ())
    root._value = node.output(root.shape, root.dtype, root.device)
    root._writes += 1
    x._value = value
    x._epoch = root._writes


def _pull_put(u: Tensor, stride: Any, steps: list[Callable[[Any], Any]], whole: bool) -> tuple[Tensor | None, Tensor]:
    """Transpose the writing of a part: its cotangent is that part of u, and what was there before gets none of it."""
    rest = u
    if not whole or u.stride() != stride or u.storage_offset():
        rest = torch.empty_strided(u.shape, stride, dtype=u.dtype, device=u.device).copy_(u)
    part: Any = rest
    for step in steps:
        part = step(part)
    if whole:
        return None, part
    taken = part.clone()
    part.zero_()
    return rest, taken


def shape_only(x: Tensor) -> Tensor:
    """Return a tensor like x on the meta device, which computes shapes and nothing else."""
    if type(x) is not Variable:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    if x._shape_only is None:
        x._shape_only = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return x._shape_only
