"""Bags of rows of a table: their cotangents go back to each row, and to each weight of a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.table import aten, conj, transpose

_MEAN = 1


def _scales(
    indices: Tensor, offsets: Tensor, bags: int, mode: int, padding: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return for each index its bag, and how much a row counts in it."""
    places = torch.arange(len(indices), device=indices.device)
    bag = torch.bucketize(places, offsets[:bags].long(), right=True) - 1
    scale = (indices != padding).to(like.dtype) if padding >= 0 else torch.ones_like(places, dtype=like.dtype)
    if mode == _MEAN:
        scale = scale / like.new_zeros(bags).index_add_(0, bag, scale).clamp(min=1)[bag]
    return bag, scale


def _pull_table(
    us: Any,
    table: Any,
    indices: Tensor,
    offsets: Tensor,
    scale_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    include_last: bool = False,
    padding: int = -1,
) -> Tensor:
    u = us[0]
    bag, scale = _scales(indices, offsets, len(u), mode, padding, u)
    rows = u[bag] * (scale if weights is None else scale * weights).unsqueeze(-1)
    return u.new_zeros(table.shape).index_add_(0, indices.long(), rows)


def _pull_weights(us: Any, table: Tensor, indices: Tensor, offsets: Tensor, *options: Any) -> Tensor:
    padding = options[5] if len(options) > 5 else -1
    bag, scale = _scales(indices, offsets, len(us[0]), 0, padding, us[0])
    return (us[0][bag] * conj(table[indices])).sum(-1) * scale


for _op in (aten._embedding_bag_forward_only.default, aten._embedding_bag.default):
    transpose(_op, _pull_table, *[None] * 5, _pull_weights)
