"""Reading by index, whose transpose adds up, and writing by index, whose transpose reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.table import aten, transpose


def _zeros(x: Any, u: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=u.dtype, device=u.device)


transpose(aten.gather, lambda u, x, dim, index, **kwargs: _zeros(x, u).scatter_add_(dim, index, u))
transpose(aten.index_select, lambda u, x, dim, index: _zeros(x, u).index_add_(dim, index, u))
transpose(aten.index.Tensor, lambda u, x, indices: aten.index_put_(_zeros(x, u), indices, u, True))
transpose(aten.take, lambda u, x, index: _zeros(x, u).put_(index, u, accumulate=True))
transpose(
    aten.embedding,
    lambda u, x, indices, *rest: _zeros(x, u).index_add_(0, indices.reshape(-1), u.flatten(0, indices.dim() - 1)),
)
transpose(
    aten._unsafe_masked_index,
    lambda u, x, mask, indices, fill: aten._unsafe_masked_index_put_accumulate(_zeros(x, u), mask, indices, u),
    terms=((0,), (3,)),
)
transpose(
    aten._unsafe_masked_index_put_accumulate,
    lambda u, x, mask, indices, values: u,
    None,
    None,
    lambda u, x, mask, indices, values: aten._unsafe_masked_index(u, mask, indices, 0),
    terms=((0,), (3,)),
)


def _pull_packed(us: Any, x: Any, lengths: Tensor, batch_first: bool) -> Tensor:
    sizes = aten._pack_padded_sequence(_zeros(x, us[0]), lengths, batch_first)[1]
    return aten._pack_padded_sequence_backward(us[0], list(x.shape), sizes, batch_first)


transpose(aten._pack_padded_sequence, _pull_packed)

_SUM = ((0,), (3,))
transpose(
    aten.scatter_add,
    lambda u, x, dim, index, src: u,
    None,
    None,
    lambda u, x, dim, index, src: _leading(u.gather(dim, index), index, src),
    terms=_SUM,
)
transpose(
    aten.scatter.src,
    lambda u, x, dim, index, src: u.scatter(dim, index, 0),
    None,
    None,
    lambda u, x, dim, index, src: _leading(u.gather(dim, index), index, src),
    terms=_SUM,
)
transpose(aten.scatter.value, lambda u, x, dim, index, value: u.scatter(dim, index, 0), terms=_SUM)
transpose(
    aten.index_add,
    lambda u, x, dim, index, source, alpha=1: u,
    None,
    None,
    lambda u, x, dim, index, source, alpha=1: u.index_select(dim, index) * alpha,
    terms=_SUM,
)
transpose(
    aten.index_copy,
    lambda u, x, dim, index, source: u.index_fill(dim, index, 0),
    None,
    None,
    lambda u, x, dim, index, source: u.index_select(dim, index),
    terms=_SUM,
)
for _op in (aten.index_fill.int_Scalar, aten.index_fill.int_Tensor):
    transpose(
        _op,
        lambda u, x, dim, index, value: u.index_fill(dim, index, 0),
        None,
        None,
        lambda u, x, dim, index, value: (u - u.index_fill(dim, index, 0)).sum(),
        terms=_SUM,
    )
transpose(
    aten.index_put,
    lambda u, x, indices, values, accumulate=False: (
        u if accumulate else aten.index_put(u, indices, torch.zeros((), dtype=u.dtype, device=u.device))
    ),
    None,
    lambda u, x, indices, values, accumulate=False: aten.index(u, indices),
    terms=((0,), (2,)),
)
transpose(
    aten.put,
    lambda u, x, index, source, accumulate=False: (
        u if accumulate else u.put(index, torch.zeros_like(index, dtype=u.dtype))
    ),
    None,
    lambda u, x, index, source, accumulate=False: u.take(index).reshape(source.shape),
    terms=((0,), (2,)),
)
transpose(
    aten.masked_scatter,
    lambda u, x, mask, source: u.masked_fill(mask, 0),
    None,
    lambda u, x, mask, source: aten.masked_scatter_backward(u, mask.expand(u.shape), list(source.shape)),
    terms=((0,), (2,)),
)


def _leading(u: Tensor, index: Tensor, src: Any) -> Tensor:
    """Return cotangents of the entries of ``src`` that an index of a smaller shape reaches, and zeros for the rest."""
    if u.shape == src.shape:
        return u
    out = _zeros(src, u)
    out[tuple(slice(n) for n in index.shape)] = u
    return out
