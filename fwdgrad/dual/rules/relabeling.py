"""Changes of a tensor's own shape or strides in place: ``x.unsqueeze_(0)`` and its kind.

The same change is made to the tangents, which may be views of the memory of others, as x may be; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import shift
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.slicing import strided_tangents
from fwdgrad.dual.tensor import Dual, DualError, structured, tangent


def _relabeling(name: str, push: Callable[..., Tensor]) -> None:
    """Enter ``Tensor.name``; ``push(t, new_shape, *args)`` is the same change of tangents (K, *shape)."""
    method = getattr(Tensor, name)

    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        t = tangent(input)
        method(input, *args, **kwargs)
        if t is not None:
            input._tangent = push(t, input.shape, *args, **kwargs)  # type: ignore[attr-defined]
        return input

    rule(method, exact=True)(handler)


def _reshaped(t: Tensor, shape: Any, *args: Any, **kwargs: Any) -> Tensor:
    return t.view(t.shape[0], *shape)


def _transposed(t: Tensor, shape: Any, dim0: int, dim1: int) -> Tensor:
    return t.transpose(shift(dim0), shift(dim1)) if t.dim() > 1 else t


_relabeling("squeeze_", lambda t, shape, *dims, **kwargs: _without(t, shape))
_relabeling("unsqueeze_", lambda t, shape, dim: t.unsqueeze(dim + 1 if dim >= 0 else dim))
_relabeling("t_", lambda t, shape: t.transpose(1, 2) if t.dim() > 2 else t)
for _name in ("transpose_", "swapaxes_", "swapdims_"):
    _relabeling(_name, _transposed)


def _without(t: Tensor, shape: Any) -> Tensor:
    """Drop dimensions of size one until t has ``shape`` behind K, without copying."""
    strides = [s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True) if n != 1]
    kept = iter(strides)
    layout = [1 if n == 1 else next(kept) for n in shape]
    return t.as_strided((t.shape[0], *shape), (t.stride(0), *layout), t.storage_offset())


def _refusing(name: str) -> None:
    method = getattr(Tensor, name)

    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if type(input) is Dual and structured(input) is not None:
            raise DualError(f"Tensor.{name}: the memory of a Dual cannot be addressed anew in place; use a view of it")
        return method(input, *args, **kwargs)

    rule(method, exact=True)(handler)


for _name in ("resize_", "resize_as_"):
    _refusing(_name)


@rule(torch.as_strided_, Tensor.as_strided_, exact=True)
def as_strided_(input: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """Address the memory anew, if no view of it would be left behind."""
    t = tangent(input)
    if t is not None:
        assert type(input) is Dual
        if input._viewed or input._root is not None:
            raise DualError("Tensor.as_strided_: other Duals view this memory; use as_strided")
        t = strided_tangents(input, t, torch.as_strided(input, size, stride, storage_offset))
    Tensor.as_strided_(input, size, stride, storage_offset)
    if t is not None:
        input._tangent, input._shared = t, False  # type: ignore[attr-defined]
    return input
