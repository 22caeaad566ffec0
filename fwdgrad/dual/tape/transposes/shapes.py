"""Views, shapes and orders of entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.graph import Node
from fwdgrad.dual.tape.table import aten, custom, transpose
from fwdgrad.dual.tape.variable import Variable, shape_only, value_of, view

for _op in (aten.view.default, aten._unsafe_view, aten._reshape_alias, aten.unsqueeze, aten.squeeze):
    transpose(_op, lambda u, x, *args: u.reshape(x.shape))
transpose(aten.transpose, lambda u, x, dim0, dim1: u.transpose(dim0, dim1))
transpose(aten.t, lambda u, x: u.t())
transpose(aten.permute, lambda u, x, dims: u.permute(_inverse([d % max(x.dim(), 1) for d in dims])))


def _inverse(dims: list[int]) -> list[int]:
    return sorted(range(len(dims)), key=dims.__getitem__)


# Parts: their cotangents go where they were, among zeros.


def part(x: Any, u: Tensor, select: Any) -> Tensor:
    """Return zeros of x's shape with u in the part that ``select`` makes of it."""
    out = torch.zeros(x.shape, dtype=u.dtype, device=u.device)
    select(out).copy_(u)
    return out


def _pull_select(u: Tensor, x: Any, dim: int, index: int) -> Tensor:
    if x.shape[dim] == 1:
        return u.unsqueeze(dim % x.dim())
    return part(x, u, lambda out: out.select(dim, index))


transpose(aten.select, _pull_select)
transpose(
    aten.slice,
    lambda u, x, dim=0, start=None, end=None, step=1: (
        u if u.shape == x.shape else part(x, u, lambda out: aten.slice(out, dim, start, end, step))
    ),
)
transpose(
    aten.diagonal,
    lambda u, x, offset=0, dim1=0, dim2=1: part(x, u, lambda out: out.diagonal(offset, dim1, dim2)),
)
transpose(aten.diag_embed, lambda u, x, offset=0, dim1=-2, dim2=-1: u.diagonal(offset, dim1, dim2))
transpose(aten.tril, lambda u, x, diagonal=0: u.tril(diagonal))
transpose(aten.triu, lambda u, x, diagonal=0: u.triu(diagonal))
transpose(aten.unfold, lambda u, x, dim, size, step: aten.unfold_backward(u, list(x.shape), dim, size, step))
transpose(aten.unfold_backward, lambda u, x, sizes, dim, size, step: u.unfold(dim, size, step))


# Several made of one, and one of several.
transpose(aten.unbind, lambda us, x, dim=0: torch.stack(us, dim))
for _op in (aten.split.Tensor, aten.split_with_sizes):
    transpose(_op, lambda us, x, sizes, dim=0: torch.cat(us, dim))
transpose(aten.cat, lambda u, xs, dim=0: _pull_cat(u, xs, dim))
transpose(aten.stack, lambda u, xs, dim=0: u.unbind(dim))


def _pull_cat(u: Tensor, xs: Any, dim: int) -> list[Tensor | None]:
    sizes = [0 if x.dim() == 1 and u.dim() > 1 else x.shape[dim] for x in xs]  # an empty vector is passed over
    return [piece if piece.dim() == x.dim() else None for piece, x in zip(u.split(sizes, dim), xs, strict=True)]


# A part written into a copy: its cotangent is that part, and the rest goes to what was written into.


def _scattering(op: Any, select: Any) -> None:
    def pull_rest(u: Tensor, x: Any, src: Any, *place: Any) -> Tensor:
        rest = u.clone()
        select(rest, *place).zero_()
        return rest

    transpose(op, pull_rest, lambda u, x, src, *place: select(u, *place), terms=((0,), (1,)))


_scattering(aten.select_scatter, torch.select)
_scattering(aten.slice_scatter, aten.slice)
_scattering(aten.diagonal_scatter, torch.diagonal)

# Orders, repetitions and margins.
transpose(aten.flip, lambda u, x, dims: u.flip(dims))
transpose(aten.roll, lambda u, x, shifts, dims=(): torch.roll(u, [-s for s in shifts], dims))
transpose(aten.rot90, lambda u, x, k=1, dims=(0, 1): torch.rot90(u, -k, dims))
transpose(aten.repeat, lambda u, x, repeats: _pull_repeat(u, x, repeats))
transpose(
    aten.constant_pad_nd, lambda u, x, pad, value=0: torch.constant_pad_nd(u, [-p for p in pad]), terms=((0,), (2,))
)
transpose(aten.pixel_shuffle, lambda u, x, factor: torch.pixel_unshuffle(u, factor))
transpose(aten.pixel_unshuffle, lambda u, x, factor: torch.pixel_shuffle(u, factor))
for _op in (aten.channel_shuffle, aten.native_channel_shuffle):
    transpose(_op, lambda u, x, groups: torch.channel_shuffle(u, x.shape[1] // groups))


def _pull_repeat(u: Tensor, x: Any, repeats: list[int]) -> Tensor:
    shape = (1,) * (len(repeats) - x.dim()) + tuple(x.shape)
    pairs = [n for r, s in zip(repeats, shape, strict=True) for n in (r, s)]
    return u.reshape(pairs).sum(list(range(0, len(pairs), 2))).reshape(x.shape) if pairs else u


@custom(aten.as_strided.default)
def as_strided(x: Variable, size: Any, stride: Any, storage_offset: int | None = None) -> Variable:
    """View the memory that a Variable would have; the transpose lays that memory out and sums into it."""
    out = torch.as_strided(shape_only(x), size, stride, storage_offset)
    geometry = (x.shape, x.stride(), x.storage_offset())
    address = (size, stride, out.storage_offset())
    node = Node("torch.as_strided", (value_of(x),), _pull_as_strided, (geometry, address), ())
    made = node.output(out.shape, out.dtype, x.device)
    return view(x, made, out, lambda base: torch.as_strided(base, size, stride, storage_offset))


def _pull_as_strided(u: Tensor, geometry: Any, address: Any) -> tuple[Tensor]:
    extent = max(_end(*geometry), _end(*address))
    memory = torch.zeros(extent, dtype=u.dtype, device=u.device)
    places = torch.arange(extent, device=u.device).as_strided(*address)
    memory.index_add_(0, places.reshape(-1), u.reshape(-1))
    return (memory.as_strided(*geometry),)


def _end(shape: Any, stride: Any, offset: int) -> int:
    return offset + 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if 0 not in shape else offset
