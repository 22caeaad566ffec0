"""Scaled dot-product attention: y = p v, with p = softmax(s) and s = scale q k' + mask.

Tangent of the scores: ``ts = scale (tq k' + q tk') + tmask``. That of the softmax is ``p ts - p rowsum(p ts)``, hence

    ty = (p ts) v - rowsum(p ts) y + p tv,

which needs no second array of the size of the scores. Dropout multiplies p, outside the row sums, by its mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.folding import total
from fwdgrad.dual.forms import align, has_tangent, nondifferentiable
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent

nondifferentiable(torch._nested_tensor_from_mask_left_aligned)  # a question that nn.TransformerEncoder asks


@rule(F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Push the formula above; dropout is that of PyTorch's unfused kernel, which it uses on the CPU."""
    if not has_tangent(query, key, value, attn_mask):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if is_causal and attn_mask is not None:
        raise RuntimeError("scaled_dot_product_attention: attn_mask must not be given together with is_causal=True")
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    tq, tk, tv = tangent(query), tangent(key), tangent(value)
    q, k, v = query.detach() * factor, key.detach(), value.detach()
    if enable_gqa:
        k, tk = _repeated(k, tk, query.shape[-3])
        v, tv = _repeated(v, tv, query.shape[-3])
    p = _probabilities(q @ k.mT, attn_mask, is_causal)
    mask = torch.dropout(torch.ones_like(p), dropout_p, True) if dropout_p > 0 else None
    kept = p if mask is None else p * mask
    y = kept @ v
    ts = total(
        None if tq is None else _times(tq * factor, k.mT, y.dim()),
        None if tk is None else _times(tk, q.mT, y.dim()).mT,
        None if (tm := tangent(attn_mask)) is None else align(tm, y.dim()),
    )
    t = None
    if ts is not None:
        ts = ts * p
        rows = ts.sum(-1, keepdim=True)
        t = _times(ts if mask is None else ts * mask, v, y.dim()) - rows * y
    if tv is not None:
        t = total(t, torch.matmul(kept, align(tv, y.dim())))
    return dual(y, t)


def _repeated(x: Tensor, t: Tensor | None, heads: int) -> tuple[Tensor, Tensor | None]:
    """Give each query head its key and value head."""
    times = heads // x.shape[-3]
    return x.repeat_interleave(times, -3), None if t is None else t.repeat_interleave(times, -3)


def _probabilities(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return the softmax of the masked scores; a row that is masked altogether is zero."""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril_()
    if mask is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    return torch.softmax(scores, -1).masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)


def _times(t: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Return the products of K tangents with one matrix (of each head): the rows are stacked, it is read once."""
    t = align(t, dim)
    if t.shape[0] == 1 or t.shape[1:-2] != matrix.shape[:-2]:
        return torch.matmul(t, matrix)
    rows = t.movedim(0, -3).flatten(-3, -2)
    return torch.matmul(rows, matrix).unflatten(-2, (t.shape[0], t.shape[-2])).movedim(-3, 0)
