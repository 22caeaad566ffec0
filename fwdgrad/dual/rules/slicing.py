"""Parts of a tensor as views, and the functions that write parts into a copy. All are linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite, jointly_linear, linear, shift
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import Dual, DualError, tangent, view_of

linear(torch.narrow, batched=lambda t, dim, start, length: t.narrow(shift(dim), start, length))
linear(torch.narrow_copy, batched=lambda t, dim, start, length: t.narrow(shift(dim), start, length).clone())
linear(torch.select, batched=lambda t, dim, index: t.select(shift(dim), index))
linear(torch.unbind, batched=lambda t, dim=0: t.unbind(shift(dim)))
linear(torch.chunk, batched=lambda t, chunks, dim=0: t.chunk(chunks, shift(dim)))
linear(torch.unsafe_chunk, batched=lambda t, chunks, dim=0: t.chunk(chunks, shift(dim)))
linear(
    getattr(torch._VF, "split"),  # noqa: B009 - mypy does not know it
    batched=lambda t, split_size, dim=0: t.split(split_size, shift(dim)),
)
linear(torch.split_with_sizes, batched=lambda t, split_sizes, dim=0: t.split(split_sizes, shift(dim)))
linear(torch.unsafe_split, batched=lambda t, split_size, dim=0: t.split(split_size, shift(dim)))
linear(torch.unsafe_split_with_sizes, batched=lambda t, split_sizes, dim=0: t.split(split_sizes, shift(dim)))


def _tensor_split(t: Any, *args: Any, dim: int = 0, **kwargs: Any) -> Any:
    if len(args) > 1:
        args, dim = args[:1], args[1]
    return t.tensor_split(*args, dim=shift(dim), **kwargs)


linear(torch.tensor_split, batched=_tensor_split)
linear(torch.hsplit, batched=lambda t, sections: t.tensor_split(sections, 1 if t.dim() == 2 else 2))
linear(torch.vsplit, batched=lambda t, sections: t.tensor_split(sections, 1))
linear(torch.dsplit, batched=lambda t, sections: t.tensor_split(sections, 3))
linear(Tensor.unfold, batched=lambda t, dimension, size, step: t.unfold(shift(dimension), size, step))

# Diagonals.
linear(
    torch.diagonal,
    batched=lambda t, offset=0, dim1=0, dim2=1: t.diagonal(offset, shift(dim1), shift(dim2)),
)
linear(
    torch.diag_embed,
    batched=lambda t, offset=0, dim1=-2, dim2=-1: torch.diag_embed(t, offset, shift(dim1), shift(dim2)),
)


@composite(torch.diag)
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """Write the matrix with a diagonal, or a copy of the diagonal of a matrix."""
    return torch.diag_embed(input, diagonal) if input.dim() == 1 else torch.diagonal(input, diagonal).clone()


# A part written into a copy: linear in both.
jointly_linear(torch.select_scatter, names=("input", "src"))
jointly_linear(torch.slice_scatter, names=("input", "src"))
jointly_linear(torch.diagonal_scatter, names=("input", "src"))


@composite(torch.as_strided_scatter)
def as_strided_scatter(input: Tensor, src: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """Write a part, addressed by strides, into a copy."""
    out = torch.empty_strided(input.shape, input.stride(), dtype=input.dtype, device=input.device)
    out.copy_(input)
    start = int(input.storage_offset())
    return _write_strided(out, src, size, stride, 0 if storage_offset is None else storage_offset - start)


def _write_strided(out: Tensor, src: Tensor, size: Any, stride: Any, offset: int) -> Tensor:
    out.as_strided(size, stride, offset).copy_(src)
    return out


@rule(torch.as_strided)
def as_strided(input: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """Lay the tangents out as the input is, and address them likewise; memory outside of it is refused."""
    y = torch.as_strided(input, size, stride, storage_offset)
    t = tangent(input)
    if t is None:
        return y
    return view_of(input, y, strided_tangents(input, t, y))


def strided_tangents(input: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return the tangents of y, which addresses the memory of ``input`` by strides of its own."""
    root = input._root if type(input) is Dual and input._root is not None else input
    offset = y.storage_offset() - input.storage_offset()
    extent = _extent(input)
    in_root = 0 <= y.storage_offset() - root.storage_offset() <= _extent(root) - _extent(y)
    if y.numel() and (offset < 0 or offset + _extent(y) > extent or not in_root):
        raise DualError(
            "as_strided: the result reaches outside of the tensor it is called on, whose tangents end "
            "there; call it on the tensor that this one is a part of"
        )
    count = t.shape[0]
    laid = t.new_zeros(count, max(extent, 1))
    laid.as_strided(t.shape, (laid.stride(0), *input.stride())).copy_(t)
    return laid.as_strided((count, *y.shape), (laid.stride(0), *y.stride()), offset).clone()


def _extent(x: Tensor) -> int:
    """Return how many places of memory lie between the first and the last entry of x, both counted."""
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
