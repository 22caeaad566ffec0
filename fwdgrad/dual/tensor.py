"""The dual number: a tensor that carries K tangents, and the bookkeeping that keeps views and in-place writes right.

A ``Dual`` *is* its primal (the same storage, shape and dtype) with K tangents attached. PyTorch hands every operation
that meets one to ``Dual.__torch_function__``, which looks the operation up in the table of rules and calls the rule
with this mechanism switched off: inside a rule a ``Dual`` computes as the plain primal, and ``tangent(x)`` reads its
tangents.

Views. The tangent of a view lies, wherever it can, in the tangent of the tensor it views, and each view knows its
``_root``. Before the first in-place write to a tensor that has views, its tangent is laid out exactly as its primal
(``_mirror``), and the views find theirs in it by their own strides (``_epoch`` tells them that they must).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.blocks import Blocks
from fwdgrad.dual.errors import DualError, PerExampleError
from fwdgrad.dual.masking import Masked
from fwdgrad.replay import Replayed
from fwdgrad.tangents import Dense, PerExample, Tangent

RULES: dict[Any, Callable[..., Any]] = {}
"""From each function, method or attribute of PyTorch to the rule that stands in for it."""

_disabled = torch._C.DisableTorchFunctionSubclass
_is_grad_enabled = torch.is_grad_enabled
_set_grad_enabled = torch._C._set_grad_enabled


@contextmanager
def dispatching() -> Iterator[None]:
    """Switch dispatch on again within a rule: every operation on a Dual meets its own rule."""
    with torch._C._EnableTorchFunction():
        _set_grad_enabled(True)
        try:
            yield
        finally:
            _set_grad_enabled(False)


class Dual(Tensor):
    """A tensor with K tangents; made by ``dual``, read by ``tangent``."""

    _tangent: Tensor | Tangent | Masked | Blocks | None = None  # (K, *shape), or structured
    _root: Dual | None = None  # the tensor whose memory this one views
    _viewed = False  # other Duals view this one
    _shared = False  # the tangent's memory is also somebody else's: copy before writing
    _mirror = False  # the tangent has the primal's strides, and views address it by theirs
    _epoch = 0
    _joint: tuple[Tensor, Tensor] | None = None  # memory ((1 + K) B, n) of primal and tangents, and these tangents

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with _disabled():
            handler = RULES.get(func)
            if handler is None:
                handler = _resolve(func)
            if not _is_grad_enabled():
                return _without_tangents(func, args, kwargs or {})
            _set_grad_enabled(False)  # an argument that requires a gradient must not start a graph
            try:
                if kwargs:
                    return handler(*args, **_checked_keywords(func, kwargs))
                return handler(*args)
            except PerExampleError as error:
                raise DualError(f"{name_of(func)}: {error}") from None
            finally:
                _set_grad_enabled(True)


def _resolve(func: Callable[..., Any]) -> Callable[..., Any]:
    from fwdgrad.dual.registry import resolve

    return resolve(func)


def _without_tangents(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation met under ``torch.no_grad``: tangents stop there, as gradients do in reverse mode."""
    # torch.autograd.Function.apply alone turns both gradient modes off; no_grad leaves forward mode on.
    if not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled():
        caller = _applied().f_code
        raise DualError(
            f"{getattr(caller, 'co_qualname', caller.co_name)}: the dual engine cannot see the derivative of a custom "
            "torch.autograd.Function; write its tangent as a rule, @fwdgrad.dual.rule(ThatFunction), or call its "
            "computation directly (for torch.utils.checkpoint: use_reentrant=False)"
        )
    return func(*args, **kwargs)


def _applied() -> Any:
    """Return the frame of the ``forward`` of the custom ``autograd.Function`` that is running."""
    frame: Any = sys._getframe(3)
    while frame is not None:
        arguments = [frame.f_locals[name] for name in frame.f_code.co_varnames[:1] if name in frame.f_locals]
        if frame.f_code.co_name == "forward" and not any(isinstance(x, torch.nn.Module) for x in arguments):
            return frame
        frame = frame.f_back
    return sys._getframe(3)


def _checked_keywords(func: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    if "out" in kwargs:
        if kwargs["out"] is not None:
            raise DualError(f"{name_of(func)}: out= is not supported on a Dual; assign the result instead, y[...] = x")
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
    if "axis" in kwargs:
        kwargs = {"dim" if key == "axis" else key: value for key, value in kwargs.items()}
    if "keepdims" in kwargs:
        kwargs = {"keepdim" if key == "keepdims" else key: value for key, value in kwargs.items()}
    return kwargs


def name_of(func: Any) -> str:
    """Return a readable name of a function, method or attribute that PyTorch dispatched on."""
    owner = getattr(func, "__self__", None)
    if getattr(func, "__name__", "") == "__get__" and owner is not None:
        return f"Tensor.{owner.__name__}"
    if isinstance(func, torch._ops.OpOverloadPacket):
        return func._qualified_op_name
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or repr(func)
    if name.startswith("pybind11_"):  # the name of a record of the binding, which differs between builds
        name = name.rpartition(".")[2]
    return name.replace("_VariableFunctionsClass.", "torch.").replace("TensorBase.", "Tensor.")


def dual(primal: Any, tangents: Tensor | Blocks | None) -> Any:
    """Attach tangents of shape (K, *primal.shape) to a tensor that the rule has just made; None leaves it plain.

    The tangent must be new memory, or a view of an argument's tangent where ``primal`` is the same view of that
    argument (``view_of``); to pass on an argument's tangent as it is, use ``dual_sharing``.
    """
    if tangents is None:
        return primal
    if tangents.dtype is not primal.dtype:
        assert isinstance(tangents, Tensor)
        tangents = tangents.to(primal.dtype)
    if type(primal) is not Tensor:
        primal = primal.detach()
    primal.__class__ = Dual
    primal._tangent = tangents
    return primal


def dual_sharing(primal: Any, tangents: Tensor | None, *sources: Any) -> Any:
    """Attach tangents whose memory belongs to the arguments ``sources`` too; they are copied when either is written."""
    out = dual(primal, tangents)
    if tangents is not None:
        out._shared = True
        for source in sources:
            if type(source) is Dual:
                (source if source._root is None else source._root)._shared = True
    return out


def view_of(source: Any, primal: Any, tangents: Tensor | Blocks | None) -> Any:
    """Attach tangents to the result of an operation that may return a view of ``source``, or ``source`` itself."""
    if primal is source or tangents is None:
        return primal
    if not primal._is_view():
        if isinstance(tangents, Tensor) and tangents._is_view():
            return dual_sharing(primal, tangents, source)
        return dual(primal, tangents)
    out = dual(primal, tangents)
    root = source if source._root is None else source._root
    root._viewed = True
    out._root = root
    out._epoch = -1 if root._mirror else root._epoch  # in a mirror it is found by the strides, when it is asked for
    return out


def masked(y: Any, tangents: Tensor, x: Tensor) -> Any:
    """Attach to y = relu(x) the tangents of x, masked when they are asked for."""
    y.__class__ = Dual
    y._tangent = Masked(tangents, y._version)
    if type(x) is Dual:
        (x if x._root is None else x._root)._shared = True
    return y


def relu_source(y: Tensor) -> Tensor | None:
    """Return, for a y = relu(x) whose tangents have not been asked for, the tangents of x; else None."""
    if type(y) is Dual and type(y._tangent) is Masked and y._root is None and y._tangent.version == y._version:
        return y._tangent.tangents
    return None


def seed(primal: Tensor, tangents: Tensor | Tangent) -> Any:
    """Return a new ``Dual`` over a caller's tensor and tangents, neither of which it will ever write to."""
    out: Any = primal.detach()
    out.__class__ = Dual
    out._tangent = tangents
    out._shared = True
    return out


def structured(x: Any) -> Any:
    """Return the tangents of an argument as they are: dense, structured, or None (plain: zero)."""
    if type(x) is not Dual:
        return None
    if x._root is not None and x._epoch != x._root._epoch:
        _refresh(x)
    t = x._tangent
    if type(t) is Masked or type(t) is Blocks:
        return tangent(x)
    if type(t) is Replayed:
        t = t.draw()
        return t.values if type(t) is Dense else t
    return t


def tangent(x: Any) -> Tensor | None:
    """Return the K tangents of an argument as one tensor (K, *x.shape), or None where it has none (they are zero)."""
    if type(x) is not Dual:
        return None
    if x._root is not None and x._epoch != x._root._epoch:
        _refresh(x)
    t = x._tangent
    if t is None or type(t) is Tensor:
        return t
    if type(t) is Masked:
        x._tangent = t = t.apply(x)
        return t
    if type(t) is Blocks:
        _running().written_out = True
        x._tangent = t = t.settle(x).materialize()
        return t
    return dense(t)


def blocks(x: Any) -> Blocks | None:
    """Return the tangents of an argument if they are in blocks; a rule that has no use for blocks need not know."""
    if type(x) is not Dual or type(x._tangent) is not Blocks:
        return None
    if x._root is not None and x._epoch != x._root._epoch:
        return None
    return x._tangent.settle(x)


def dense(t: Any) -> Any:
    """Return tangents read by ``structured`` as one tensor."""
    if t is None or isinstance(t, Tensor):
        return t
    if isinstance(t, PerExample):
        raise PerExampleError(
            f"a per-example direction (of a parameter of shape {tuple(t.shape)}) is not supported here; choose a "
            "shared direction for this parameter, such as 'low_rank' or 'rademacher'"
        )
    return t.materialize()


def _refresh(x: Dual) -> None:
    """Find the tangent of a view in its root's, which has been laid out anew."""
    root: Any = x._root
    x._tangent = None if root._tangent is None else _same_view(root, root._tangent, x)
    x._epoch = root._epoch


def _same_view(root: Tensor, tangents: Tensor, view: Tensor) -> Tensor:
    offset = view.storage_offset() - root.storage_offset()
    lead = tangents.stride(0)
    if view.dtype is not root.dtype:
        ratio = root.element_size() // view.element_size()
        offset = view.storage_offset() - root.storage_offset() * ratio
        tangents, lead = torch.view_as_real(tangents), lead * ratio
    out = tangents.as_strided(
        (tangents.shape[0], *view.shape), (lead, *view.stride()), tangents.storage_offset() + offset
    )
    return out.conj() if view.is_conj() else out


def mirror(root: Dual) -> None:
    """Give ``root`` a tangent of its own in the layout of its primal, which all its views then address."""
    old = tangent(root)
    extent = 1 + sum((n - 1) * s for n, s in zip(root.shape, root.stride(), strict=True))
    stride = (max(extent, 1), *root.stride())
    if old is None:
        new = zero_tangents(root, stride)
    else:
        new = old.new_empty_strided(old.shape, stride)
        new.copy_(old)
    root._tangent = new
    root._shared = False
    root._mirror = True
    root._epoch += 1


def zero_tangents(x: Tensor, stride: tuple[int, ...] | None = None) -> Tensor:
    """Return new tangents for a tensor without; their K is that which the running evaluation has noted."""
    return _running().zeros(x, stride)


def _running() -> Any:
    from fwdgrad.dual.running import current

    return current()
