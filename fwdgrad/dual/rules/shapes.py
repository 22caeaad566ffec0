"""Views and shapes. All are linear: the tangent is the same view of the tangent, behind its leading K."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, composite, linear, shift
from fwdgrad.dual.registry import register, rule
from fwdgrad.dual.tensor import blocks, tangent, view_of


def _reshaping(function: Callable[..., Any], *aliases: Any) -> None:
    """Enter a function that keeps the elements in order: the shape of its result says all."""

    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = function(input, *args, **kwargs)
        in_blocks = blocks(input)
        if in_blocks is not None and y.dim() == 2 and y.shape[0] == input.shape[0] and y is not input:
            return view_of(input, y, in_blocks.flatten())
        t = tangent(input)
        return y if t is None or y is input else view_of(input, y, t.reshape(t.shape[0], *y.shape))

    register(handler, function, *aliases)


_function: Any
for _function in (Tensor.reshape, Tensor.reshape_as, torch.squeeze, torch.unsqueeze, torch.flatten, torch.ravel):
    _reshaping(_function)
_reshaping(Tensor.view_as)
for _function in (torch.unflatten, torch._C.TensorBase.unflatten):
    _reshaping(_function)


@rule(Tensor.unflatten)
def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    """Reshape; Tensor.unflatten is written in Python, and calls its base class."""
    y, t = torch.unflatten(input, dim, sizes), tangent(input)
    return y if t is None else view_of(input, y, t.reshape(t.shape[0], *y.shape))


def sizes_of(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes or dimensions that were given one by one or as one sequence."""
    return tuple(args[0]) if len(args) == 1 and not isinstance(args[0], int) else args


@rule(Tensor.view)
def view(input: Tensor, *size: Any, **kwargs: Any) -> Tensor:
    """Reshape. A view of the same memory as another dtype has no derivative."""
    y = input.view(*size, **kwargs)
    t = tangent(input)
    if t is None or y.dtype is not input.dtype:
        return y
    return view_of(input, y, t.reshape(t.shape[0], *y.shape))


# Orders of dimensions.
linear(torch.transpose, batched=lambda t, dim0, dim1: t.transpose(shift(dim0), shift(dim1)))


def _permute(t: Tensor, *args: Any, dims: Any = None) -> Tensor:
    return t.permute(0, *[shift(d) for d in (sizes_of(args) if dims is None else dims)])


linear(Tensor.permute, batched=_permute)  # the method also takes the dimensions one by one


def _moved(dims: Any) -> Any:
    return shift(dims) if isinstance(dims, int) else [shift(d) for d in dims]


linear(
    torch.movedim,
    torch.moveaxis,
    batched=lambda t, source, destination: t.movedim(_moved(source), _moved(destination)),
)


def attribute(name: str) -> Any:
    """Return what PyTorch dispatches on when an attribute of a tensor is read."""
    return getattr(Tensor, name).__get__


def _t(t: Tensor) -> Tensor:
    return t.view(t.shape) if t.dim() < 3 else t.transpose(1, 2)


linear(torch.t, batched=_t)
linear(torch.adjoint, batched=lambda t: t.mH)
linear(attribute("T"), batched=lambda t: t.permute(0, *reversed(range(1, t.dim()))))
linear(attribute("mT"), batched=lambda t: t.mT)
linear(attribute("mH"), batched=lambda t: t.mH)
linear(attribute("H"), batched=lambda t: t.mH)

# Sizes.


def _expanding(function: Callable[..., Any]) -> None:
    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = function(input, *args, **kwargs)
        t = tangent(input)
        return y if t is None else view_of(input, y, align(t, y.dim()).expand(t.shape[0], *y.shape))

    register(handler, function)


for _function in (Tensor.expand, Tensor.expand_as, torch.broadcast_to):
    _expanding(_function)


@composite(getattr(torch._VF, "broadcast_tensors"))  # noqa: B009 - mypy does not know it
def broadcast_tensors(tensors: Any) -> list[Tensor]:
    """Write each as an expansion to the common shape."""
    shape = torch.broadcast_shapes(*[x.shape for x in tensors])
    return [x.expand(shape) for x in tensors]


@composite(Tensor.sum_to_size)
def sum_to_size(input: Tensor, *size: Any) -> Tensor:
    """Write the sum over the dimensions that an expansion from ``size`` would make."""
    shape = sizes_of(size)
    lead = input.dim() - len(shape)
    dims = [d for d in range(input.dim()) if d < lead or (shape[d - lead] == 1 and input.shape[d] != 1)]
    return input.sum(dims, keepdim=True).reshape(shape) if dims else input.view_as(input)


# Copies.
linear(torch.clone, batched=lambda t, **kwargs: t.clone())
linear(Tensor.contiguous)


def _copying(name: str) -> None:
    """Enter ``torch.f_copy``, the function f with a result of its own memory."""
    view_function = getattr(torch, name, None) or getattr(Tensor, name)

    @composite(getattr(torch, f"{name}_copy"))
    def copied(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = view_function(input, *args, **kwargs)
        return out.clone() if isinstance(out, Tensor) else type(out)([piece.clone() for piece in out])


for _name in ("as_strided", "diagonal", "expand", "permute", "select", "split", "split_with_sizes", "squeeze", "t"):
    _copying(_name)
for _name in ("transpose", "unbind", "unfold", "unsqueeze", "view", "narrow", "view_as_real", "view_as_complex"):
    _copying(_name)
linear(torch.alias_copy, batched=torch.alias_copy)
linear(torch.slice_copy)
