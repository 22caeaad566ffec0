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
    n = y.dim()
    tm = tangent(attn_mask)
    ts = _scores(q, None if tq is None else align(tq, n), k, None if tk is None else align(tk, n), factor)
    if tm is not None:
        ts = total(ts, align(tm, n))
    t = None if tv is None else torch.matmul(kept, align(tv, n))
    if ts is not None:
        ts = ts * p
        rows = ts.sum(-1, keepdim=True)
        t = total(t, torch.matmul(ts if mask is None else ts.mul_(mask), v).addcmul_(rows, y, value=-1))
    return dual(y, t)


def _scores(q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, factor: float) -> Tensor | None:
    """Return ``tq k' + q tk'`` times the factor, which q has in it already."""
    if tq is None and tk is None:
        return None
    k = k * factor
    plain = q.shape[:-2] == k.shape[:-2] and all(t is None or t.dim() == q.dim() + 1 for t in (tq, tk))
    if not plain or type(tk if tq is None else tq) is not Tensor or torch.is_autocast_enabled(q.device.type):
        return total(None if tq is None else torch.matmul(tq, k.mT), None if tk is None else torch.matmul(q, tk.mT))
    # Direction by direction into one array: a matrix product of expanded tensors would copy them.
    rows, columns = q.shape[-2:], k.shape[-2:]
    q, k = q.reshape(-1, *rows), k.reshape(-1, *columns)
    some = tq if tq is not None else tk
    assert some is not None
    out = torch.empty((len(some), len(q), rows[0], columns[0]), dtype=q.dtype, device=q.device)
    for i, scores in enumerate(out):
        if tq is not None:
            torch.bmm(tq[i].reshape(-1, *rows), k.mT, out=scores)
        if tk is not None:
            scores.baddbmm_(q, tk[i].reshape(-1, *columns).mT, beta=0 if tq is None else 1)
    return out.view(len(some), *some.shape[1:-2], rows[0], columns[0])


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
