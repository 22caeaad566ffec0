"""Embeddings and bags of them: rows of the table, so the tangents are the same rows of the table's tangent.

The row t of a low-rank direction ``sum_r left_r right_r'`` is ``sum_r left_r[t] right_r``: only the factors are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fwdgrad.dual.folding import total
from fwdgrad.dual.forms import nondifferentiable
from fwdgrad.dual.registry import rule
from fwdgrad.dual.running import current
from fwdgrad.dual.tensor import DualError, dense, dual, structured, tangent
from fwdgrad.tangents import LowRank, PerExample, Tangent

_MEAN, _MAX = 1, 2

nondifferentiable(torch.embedding_renorm_)


@rule(torch.embedding)
def embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """Push the rows of tW, none for ``padding_idx``; over their counts if scale_grad_by_freq, as in reverse mode."""
    y = torch.embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse)
    tw = structured(weight)
    if tw is None:
        return y
    if isinstance(tw, LowRank):
        rows = tw.left[:, :, indices]  # (K, r, *indices)
        t = torch.einsum("kr...,krf->k...f", rows, tw.right) if tw.rank > 1 else _outer(rows[:, 0], tw.right[:, 0])
    elif isinstance(tw, PerExample):
        t = _per_example(tw, indices)
    else:
        table = dense(tw)
        assert table is not None
        t = table.index_select(1, indices.reshape(-1)).view(table.shape[0], *y.shape)
    if padding_idx >= 0:
        t = t * (indices != padding_idx).unsqueeze(-1)
    if scale_grad_by_freq:
        t = t / _counts(indices, weight)[indices].unsqueeze(-1)
    return dual(y, t)


def _outer(rows: Tensor, features: Tensor) -> Tensor:
    """Return rows (K, *indices) times features (K, f)."""
    return rows.unsqueeze(-1) * features.view(features.shape[0], *(1,) * (rows.dim() - 1), features.shape[1])


def _per_example(tw: PerExample, indices: Tensor) -> Tensor:
    """Return ``left[b, index] right[b]`` for the indices of example b, the first dimension."""
    left, right = tw.factors(indices.shape[0])
    assert right is not None
    count = left.shape[0]
    rows = left.gather(2, indices.reshape(1, indices.shape[0], -1).expand(count, -1, -1))
    return (rows.unsqueeze(-1) * right.unsqueeze(2)).view(count, *indices.shape, right.shape[2])


def _counts(indices: Tensor, weight: Tensor) -> Tensor:
    return torch.bincount(indices.reshape(-1), minlength=weight.shape[0]).to(weight.dtype)


@rule(torch.embedding_bag)
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Push the bags of tW, and those of W with the tangents of the sample weights for weights; a maximum its rows."""
    rest = (include_last_offset, padding_idx)
    options = (scale_grad_by_freq, mode, sparse)
    y, *info = torch.embedding_bag(weight, indices, offsets, *options, per_sample_weights, *rest)
    tw, ts = structured(weight), tangent(per_sample_weights)
    if tw is None and ts is None:
        return y, info[0], info[1], info[2]
    t = None
    if mode == _MAX:
        t = _maximum(dense(tw), info[1], info[2])
    elif tw is not None:
        table, right = _table(tw)
        count = current().num_directions
        if scale_grad_by_freq:
            table = table / _counts(indices, weight).clamp_(min=1).unsqueeze(-1)
        bags = torch.embedding_bag(table, indices, offsets, False, mode, False, per_sample_weights, *rest)[0]
        bags = bags.view(bags.shape[0], count, -1)
        t = bags.transpose(0, 1) if right is None else torch.bmm(bags.transpose(0, 1), right)
    if ts is not None:
        weighted = [torch.embedding_bag(weight, indices, offsets, False, mode, False, s, *rest)[0] for s in ts]
        t = total(t, torch.stack(weighted))
    return dual(y, t), info[0], info[1], info[2]


def _table(tw: Tensor | Tangent) -> tuple[Tensor, Tensor | None]:
    """Return a table of K f columns, or one of K r, whose bags are still to be multiplied by the (K, r, f) returned."""
    if isinstance(tw, LowRank):
        return tw.left.flatten(0, 1).t().contiguous(), tw.right
    t = dense(tw)
    assert t is not None
    return t.transpose(0, 1).reshape(t.shape[1], -1), None


def _maximum(t: Tensor | None, sizes: Tensor, places: Tensor) -> Tensor:
    """Return ``t[k, places[b, f], f]``, zero for empty bags."""
    if t is None:
        raise DualError("torch.embedding_bag: per_sample_weights are supported only for mode='sum'")
    rows = t.gather(1, places.clamp(min=0).expand(t.shape[0], -1, -1))
    return rows * (sizes[: places.shape[0]] > 0).unsqueeze(-1)
