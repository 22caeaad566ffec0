"""In-place writes: ``x.mul_(y)``, ``x += y``, ``x[i] = y``, right for x, for its views, and for what x views.

Every in-place method that is not written out runs its out-of-place rule and writes the result (``in_place``). A plain
tensor that receives a Dual becomes a Dual itself, from then on to the end of the evaluation, if nobody else can see its
memory; else the write is refused, for a plain tensor elsewhere could not carry the tangent.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.running import current
from fwdgrad.dual.tensor import Dual, DualError, dual, mirror, tangent, zero_tangents


def own(x: Dual) -> Any:
    """Return the tangents of x (zeros, if it had none), free to be written in place; views see what is written."""
    root = x._root
    if root is None and not x._viewed:
        t = x._tangent
        if t is None:
            t = zero_tangents(x)
        elif not isinstance(t, Tensor):
            t = tangent(x)
        elif x._shared or _overlaps(t):
            t = t.clone(memory_format=torch.contiguous_format)
        else:
            return t
        x._tangent = t
        x._shared = False
        return t
    root = x if root is None else root
    if root._shared or not root._mirror:
        mirror(root)
    t = tangent(x)
    assert t is not None
    return t


def _overlaps(t: Tensor) -> bool:
    return 0 in t.stride() and any(s == 0 and n > 1 for n, s in zip(t.shape, t.stride(), strict=True))


def own_or_none(x: Any, name: str, incoming: bool) -> Any:
    """Return tangents to write to for the target of an in-place operation, or None if it stays without.

    Args:
        x: the target, dual or plain.
        name: the operation, for messages.
        incoming: whether any other argument brings a tangent.
    """
    if type(x) is Dual:
        if incoming or x._tangent is not None or x._root is not None:
            return own(x)
        return None
    if not incoming:
        return None
    return own(promote(x, name))


def promote(x: Any, name: str) -> Any:
    """Turn a plain tensor that is about to receive a Dual into one, or refuse.

    Raises:
        DualError: if other tensors share its memory, or it is a leaf of autograd.
    """
    if x.requires_grad or not (x.is_floating_point() or x.is_complex()):
        raise DualError(f"{name}: a Dual cannot be written into a {x.dtype} tensor (requires_grad={x.requires_grad})")
    base = x._base if x._is_view() else None
    known = {id(x), id(x if base is None else base)}
    count = torch._C._storage_Use_Count(x.untyped_storage()._cdata) - 1
    if count > len(known) or (base is not None and type(base) is not Tensor):
        raise DualError(
            f"{name}: a Dual is written in place into a plain tensor of shape {tuple(x.shape)} whose memory other "
            "plain tensors see, and these cannot carry the tangent; write into x.clone(), or use the out-of-place "
            "operation (torch.cat, torch.stack, torch.where)"
        )
    root: Any = x if base is None else base
    here = current()
    for tensor in (root,) if base is None else (root, x):
        tensor.__class__ = Dual
        here.promoted.append(weakref.ref(tensor))
    if base is not None:
        root._viewed = True
        x._root = root
    return x


def write(x: Any, value: Any, name: str, fresh: bool = False) -> Tensor:
    """Do ``x.copy_(value)`` with tangents, for an x that is dual or plain; return x.

    A ``fresh`` value is nobody else's, so that x may take its tangents over.
    """
    t = tangent(value)
    if type(x) is Dual and x._root is None and not x._viewed and t is not None and value.shape == x.shape:
        x._tangent = t if t.dtype is x.dtype else t.to(x.dtype)
        x._shared = value._shared or not fresh or value._root is not None
        if not fresh:
            (value if value._root is None else value._root)._shared = True
    else:
        target = own_or_none(x, name, t is not None)
        if t is not None:
            target.copy_(align_like(t, target))
        elif target is not None:
            target.zero_()
    if value is not x:
        Tensor.copy_(x, value)
    return x


def unwritten(x: Any, target: Tensor) -> Any:
    """Return x, or in reverse mode, if it shares the memory of ``target``, which is about to be written to, a copy.

    The transpose may need the value that it has now.
    """
    if not current().taped or not isinstance(x, Tensor):
        return x
    if x.untyped_storage()._cdata != target.untyped_storage()._cdata:
        return x
    return dual(x.detach().clone(), tangent(x))


def align_like(t: Tensor, target: Tensor) -> Tensor:
    """View tangents (K, *shape) so that they broadcast against a ``target`` of shape (K, ..., *shape)."""
    missing = target.dim() - t.dim()
    return t.view(t.shape[0], *(1,) * missing, *t.shape[1:]) if missing > 0 else t


def in_place(handler: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the in-place variant of an out-of-place rule."""

    @functools.wraps(handler)
    def write_result(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if current().taped:
            result = handler(*[unwritten(x, input) for x in (input, *args)], **kwargs)
        else:
            result = handler(input, *args, **kwargs)
        if result is input:
            return input
        return write(input, result, name, fresh=True)

    return write_result
