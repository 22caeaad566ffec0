"""Views and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import linear, shift
from fwdgrad.dual.inplace import align_like, own_or_none
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import tangent, view_of

linear(torch.transpose, batched=lambda t, dim0, dim1: t.transpose(shift(dim0), shift(dim1)))
linear(torch.clone)
linear(Tensor.contiguous)


def _sizes(size: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size


linear(Tensor.reshape, batched=lambda t, *shape: t.reshape(t.shape[0], *_sizes(shape)))


@rule(Tensor.view)
def view(input: Tensor, *size: Any, **kwargs: Any) -> Tensor:
    y = input.view(*size, **kwargs)
    t = tangent(input)
    return y if t is None else view_of(input, y, t.reshape(t.shape[0], *y.shape))


@rule(Tensor.__getitem__)
def getitem(input: Tensor, index: Any) -> Tensor:
    y = Tensor.__getitem__(input, index)
    t = tangent(input)
    if t is None:
        return y
    pieces = [tk[index] for tk in t.unbind(0)]
    return view_of(input, y, pieces[0].unsqueeze(0) if len(pieces) == 1 else torch.stack(pieces))


@rule(Tensor.__setitem__)
def setitem(input: Tensor, index: Any, value: Any) -> None:
    t = tangent(value)
    target = own_or_none(input, "Tensor.__setitem__", t is not None)
    if target is not None:
        for k, piece in enumerate(target.unbind(0)):
            piece[index] = 0 if t is None else t[k]
    Tensor.__setitem__(input, index, value)


_ = align_like
