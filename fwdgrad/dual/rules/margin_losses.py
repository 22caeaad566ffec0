"""Losses of margins, written out in functions that have rules."""

from __future__ import annotations

import torch
from torch import Tensor

from fwdgrad.dual.forms import composite
from fwdgrad.dual.rules.losses import _reduce as reduce

_nn = torch._C._nn


@composite(torch.hinge_embedding_loss)
def hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = 1) -> Tensor:
    """Write x where y = 1, max(0, margin - x) where y = -1."""
    apart = torch.where(target == 1, torch.zeros_like(input), torch.relu(margin - input))
    together = torch.where(target == -1, torch.zeros_like(input), input)
    return reduce(apart + together, reduction)


@composite(torch.margin_ranking_loss)
def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 1
) -> Tensor:
    """Write max(0, margin - y (x1 - x2))."""
    return reduce(torch.clamp_min(margin - target * (input1 - input2), 0), reduction)


@composite(torch.cosine_embedding_loss)
def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 1
) -> Tensor:
    """Write 1 - cos where y = 1, max(0, cos - margin) where y = -1."""
    dim = target.dim()
    epsilon = 1e-12
    cos = (input1 * input2).sum(dim) / torch.sqrt(
        ((input1 * input1).sum(dim) + epsilon) * ((input2 * input2).sum(dim) + epsilon)
    )
    zero = torch.zeros_like(cos)
    pulled = torch.where(target == 1, 1 - cos, zero)
    return reduce(pulled + torch.where(target == -1, torch.clamp_min(cos - margin, 0), zero), reduction)


@composite(torch.triplet_margin_loss)
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = 1,
) -> Tensor:
    """Write max(0, margin + d(a, p) - d(a, n)), with swap the smaller of d(a, n) and d(p, n)."""
    distance = torch.nn.functional.pairwise_distance
    near, far = distance(anchor, positive, p, eps), distance(anchor, negative, p, eps)
    if swap:
        far = torch.minimum(far, distance(positive, negative, p, eps))
    return reduce(torch.clamp_min(margin + near - far, 0), reduction)


@composite(_nn.multi_margin_loss)
def multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Write the mean over classes c != y of w_y max(0, margin - x_y + x_c)^p."""
    x, y = (input, target) if input.dim() == 2 else (input.reshape(1, -1), target.reshape(1))
    own = x.gather(1, y.unsqueeze(1))
    terms = torch.clamp_min(margin - own + x, 0)
    terms = terms if p == 1 else terms**p
    if weight is not None:
        terms = terms * weight[y].unsqueeze(1)
    others = torch.arange(x.shape[1], device=x.device) != y.unsqueeze(1)
    loss = torch.where(others, terms, torch.zeros_like(terms)).sum(1) / x.shape[1]
    return reduce(loss if input.dim() == 2 else loss.squeeze(0), reduction)


@composite(_nn.multilabel_margin_loss)
def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """Write the mean over labels y and other classes c of max(0, 1 - x_y + x_c); the labels end at the first -1."""
    x, y = (input, target) if input.dim() == 2 else (input.reshape(1, -1), target.reshape(1, -1))
    listed = (y >= 0).cumprod(1).bool()
    labels = torch.where(listed, y, torch.zeros_like(y))
    member = torch.zeros_like(y).scatter_add(1, labels, listed.to(y.dtype)) > 0
    own = x.gather(1, labels)
    terms = torch.relu(1 - own.unsqueeze(2) + x.unsqueeze(1))
    counted = listed.unsqueeze(2) & ~member.unsqueeze(1)
    loss = torch.where(counted, terms, torch.zeros_like(terms)).sum((1, 2)) / x.shape[1]
    return reduce(loss if input.dim() == 2 else loss.squeeze(0), reduction)
