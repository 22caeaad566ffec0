"""Reading and writing by index: x[i], x[i] = y, and the functions that select. The tangent is indexed likewise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, composite, linear, per_direction, shift
from fwdgrad.dual.inplace import own_or_none
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent, view_of


@rule(Tensor.__getitem__)
def getitem(input: Tensor, index: Any) -> Tensor:
    """Index the tangents of all directions at once where a leading dimension changes nothing else."""
    y = Tensor.__getitem__(input, index)
    t = tangent(input)
    if t is None:
        return y
    items = index if type(index) is tuple else (index,)
    if _leads(items):
        return view_of(input, y, t[(slice(None), *items)])
    return view_of(input, y, per_direction(lambda tk: tk[index], t))


def _leads(items: tuple[Any, ...]) -> bool:
    """Return whether x[items] is z[:, items][k] for x = z[k].

    Not so where slices stand between tensors: their dimensions then go first. Lists and booleans are left aside too.
    """
    tensors, gap = False, False
    for item in items:
        if isinstance(item, Tensor):
            if gap:
                return False
            tensors = True
        elif item is None or item is Ellipsis or isinstance(item, slice):
            gap = tensors
        elif isinstance(item, bool) or not isinstance(item, int):
            return False
    return True


@rule(Tensor.__setitem__)
def setitem(input: Tensor, index: Any, value: Any) -> None:
    """Write the tangents of the value, or zeros, to the same places of those of the input."""
    t = tangent(value)
    target = own_or_none(input, "Tensor.__setitem__", t is not None)
    if target is not None:
        for k, piece in enumerate(target.unbind(0)):
            piece[index] = 0 if t is None else t[k]
    Tensor.__setitem__(input, index, value)


@rule(torch.index_select)
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """Select the same slices of the tangents."""
    y, t = torch.index_select(input, dim, index), tangent(input)
    if t is None:
        return y
    return dual(y, t.index_select(shift(dim), index) if input.dim() else t.clone().view(t.shape[0], *y.shape))


def gathered(t: Tensor, dim: int, index: Tensor) -> Tensor:
    """Gather from tangents (K, *shape) along a dimension of their primal, with an index of that primal."""
    if t.dim() == 1:  # of a number: an index of one place
        return t.unsqueeze(1).repeat(1, index.numel()).view(t.shape[0], *index.shape)
    return t.gather(shift(dim), index.expand(t.shape[0], *index.shape))


@rule(torch.gather)
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """Gather from the tangents."""
    y, t = torch.gather(input, dim, index), tangent(input)
    return y if t is None else dual(y, gathered(t, dim, index))


linear(torch.take, batched=lambda t, index: t.flatten(1)[:, index])


def _take_along_dim(t: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return torch.take_along_dim(t.flatten(1), indices.reshape(1, -1), 1)
    return torch.take_along_dim(t, indices.unsqueeze(0), shift(dim))


linear(torch.take_along_dim, batched=_take_along_dim)


@rule(torch.masked_select)
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """Select from the tangents, with mask and input broadcast against each other."""
    y, t = torch.masked_select(input, mask), tangent(input)
    if t is None:
        return y
    shape = torch.broadcast_shapes(input.shape, mask.shape)
    t = align(t, len(shape)).expand(t.shape[0], *shape)
    return dual(y, t[:, mask.expand(shape)] if shape else t[:, None][:, : y.numel()].clone())


@composite(torch._unsafe_index)
def unsafe_index(input: Tensor, indices: Any) -> Tensor:
    """Write x[indices]; None stands for a whole dimension."""
    return input[tuple(slice(None) if i is None else i for i in indices)]
