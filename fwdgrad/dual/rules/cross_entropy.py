"""Cross entropy and negative log-likelihood, which is linear in the log-probabilities and so its own tangent map.

With lp = log_softmax(x) and p = exp(lp), the tangent of nll(lp) is nll(t - p.t), whatever the weights, the ignored
targets and the reduction.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.forms import composite
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import Dual, dual, tangent

_nn: Any = torch._C._nn
_reduction: Any = torch.nn._reduction
_nll = _nn.nll_loss_nd
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


@rule(F.cross_entropy)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Push nll(t - p.t); smoothed labels, probabilities, and weights that move go through the formula."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if label_smoothing != 0.0 or type(target) is Dual or type(weight) is Dual or target.dtype.is_floating_point:
        return _formula(input, target, weight, ignore_index, reduction, label_smoothing)
    code = _REDUCTIONS[reduction]
    dim = 1 if input.dim() > 1 else 0
    t = tangent(input)
    if torch.is_autocast_enabled(input.device.type):  # as F.cross_entropy does, where log_softmax alone may not
        input, t = input.float(), None if t is None else t.float()
    lp = torch.log_softmax(input, dim)
    y = _nll(lp, target, weight, code, ignore_index)
    if t is None:
        return y
    t = t - (t * lp.exp_()).sum(dim + 1, keepdim=True)
    return dual(y, _push_nll(t, target, weight, code, ignore_index))


def _push_nll(t: Tensor, target: Tensor, weight: Tensor | None, code: int, ignore_index: int) -> Tensor:
    """Return nll(t_k) for each direction, with the directions folded into the batch."""
    count = t.shape[0]
    if count == 1:
        return _nll(t[0], target, weight, code, ignore_index).unsqueeze(0)
    folded = t if target.dim() == 0 else t.flatten(0, 1)
    terms = _nll(
        folded,
        target.expand(count, *target.shape).reshape(folded.shape[:1] + folded.shape[2:]),
        weight,
        0,
        ignore_index,
    )
    terms = terms.view(count, *target.shape)
    if code == 0:
        return terms
    total = terms.flatten(1).sum(1) if target.dim() else terms
    if code == 2:
        return total
    valid = target != ignore_index
    return total / (valid.sum() if weight is None else (weight[torch.where(valid, target, 0)] * valid).sum())


@rule(_nll, _nn.nll_loss, _nn.nll_loss2d)
def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1, ignore_index: int = -100
) -> Tensor:
    """Push nll(t)."""
    if type(weight) is Dual:
        return _weighted_nll(input, target, weight, reduction, ignore_index)
    y, t = _nll(input, target, weight, reduction, ignore_index), tangent(input)
    return y if t is None else dual(y, _push_nll(t, target, weight, reduction, ignore_index))


@composite()
def _weighted_nll(input: Tensor, target: Tensor, weight: Tensor, reduction: int, ignore_index: int) -> Tensor:
    valid = target != ignore_index
    index = torch.where(valid, target, 0)
    dim = 1 if input.dim() > 1 else 0
    w = torch.where(valid, weight[index], 0.0)
    terms = -w * input.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    return terms if reduction == 0 else terms.sum() / w.sum() if reduction == 1 else terms.sum()


@composite()
def _formula(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    dim = 1 if input.dim() > 1 else 0
    classes = input.shape[dim]
    lp = F.log_softmax(input, dim)
    w = None if weight is None else weight.view(-1, *(1,) * (input.dim() - 1 - dim))
    if target.dtype.is_floating_point:
        q = target * (1 - smoothing) + smoothing / classes if smoothing else target
        terms = -(lp * q if w is None else lp * q * w).sum(dim)
        return terms if reduction == "none" else terms.sum() / (terms.numel() if reduction == "mean" else 1)
    code = _REDUCTIONS[reduction]
    nll = F.nll_loss(lp, target, weight, ignore_index=ignore_index, reduction=reduction)
    if not smoothing:
        return nll
    valid = target != ignore_index
    smooth = torch.where(valid, -(lp if w is None else lp * w).sum(dim), 0.0)
    if code == 1:
        picked: Any = valid if weight is None else torch.where(valid, weight[torch.where(valid, target, 0)], 0.0)
        smooth = smooth.sum() / picked.sum()
    elif code == 2:
        smooth = smooth.sum()
    return (1 - smoothing) * nll + smoothing / classes * smooth
