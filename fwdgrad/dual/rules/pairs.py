"""What is computed of pairs of vectors: bilinear forms, cosine similarity, distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fwdgrad.dual.folding import scale_tangent, total
from fwdgrad.dual.forms import align, attach
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dispatching, dual, tangent


@rule(torch.bilinear)
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Push ``x1' W x2`` once for each factor's tangent, and tb."""
    y = torch.bilinear(input1, input2, weight, bias)
    t1, t2, tw = tangent(input1), tangent(input2), tangent(weight)
    t = total(
        None if t1 is None else torch.bilinear(t1, input2.expand(t1.shape[0], *input2.shape), weight),
        None if t2 is None else torch.bilinear(input1.expand(t2.shape[0], *input1.shape), t2, weight),
        None if tw is None else torch.stack([torch.bilinear(input1, input2, w.to(weight.dtype)) for w in tw]),
        scale_tangent(bias, y, y.dim() - 1),
    )
    return attach(y, t, bias)


@rule(torch.cosine_similarity)
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """With u = x / n and n = max(|x|, eps): y = u1.u2, tangent ``t1.(u2 - y u1) / n1 + t2.(u1 - y u2) / n2``.

    Where the norm is below eps it is constant, and the term with y drops out.
    """
    if x1.dim() == 0 and x2.dim() == 0:
        with dispatching():
            return torch.cosine_similarity(x1.reshape(1), x2.reshape(1), 0, eps)
    y = torch.cosine_similarity(x1, x2, dim, eps)
    t1, t2 = tangent(x1), tangent(x2)
    if t1 is None and t2 is None:
        return y
    a, b = torch.broadcast_tensors(x1.detach(), x2.detach())
    dim = dim % a.dim()
    na, nb = (torch.linalg.vector_norm(x, dim=dim, keepdim=True) for x in (a, b))
    a, b = a / na.clamp(min=eps), b / nb.clamp(min=eps)
    cosine = y.unsqueeze(dim)
    by_first = (b - cosine * a * (na > eps)) / na.clamp(min=eps)
    by_second = (a - cosine * b * (nb > eps)) / nb.clamp(min=eps)
    return dual(
        y,
        total(
            None if t1 is None else (align(t1, a.dim()) * by_first).sum(dim + 1),
            None if t2 is None else (align(t2, a.dim()) * by_second).sum(dim + 1),
        ),
    )


@rule(torch.pairwise_distance)
def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """Push ``w.(t1 - t2)`` with the gradient w of ``|x1 - x2 + eps|_p``."""
    y = torch.pairwise_distance(x1, x2, p, eps, keepdim)
    t1, t2 = tangent(x1), tangent(x2)
    if t1 is None and t2 is None:
        return y
    difference = x1.detach() - x2.detach() + eps
    w = _norm_gradient(difference, p)
    n = difference.dim()
    moved = total(None if t1 is None else align(t1, n), None if t2 is None else -align(t2, n))
    assert moved is not None
    pushed = (w.conj() * moved).sum(-1, keepdim)
    return dual(y, pushed.real if pushed.is_complex() else pushed)


@rule(torch.cdist)
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """Push ``w_ij.(t1_i - t2_j)`` with the gradient w_ij of the distance of x1_i and x2_j."""
    y = torch.cdist(x1, x2, p, compute_mode)
    t1, t2 = tangent(x1), tangent(x2)
    if t1 is None and t2 is None:
        return y
    w = _norm_gradient(x1.detach().unsqueeze(-2) - x2.detach().unsqueeze(-3), p)
    n = y.dim()
    first = None if t1 is None else torch.einsum("...ijm,k...im->k...ij", w, align(t1, n))
    second = None if t2 is None else -torch.einsum("...ijm,k...jm->k...ij", w, align(t2, n))
    return dual(y, total(first, second))


@rule(torch.pdist)
def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """Push ``w_ij.(t_i - t_j)`` for the pairs i < j."""
    y = torch.pdist(input, p)
    t = tangent(input)
    if t is None:
        return y
    i, j = torch.triu_indices(input.shape[0], input.shape[0], 1, device=input.device)
    w = _norm_gradient(input[i] - input[j], p)
    return dual(y, ((t[:, i] - t[:, j]) * w).sum(-1))


def _norm_gradient(x: Tensor, p: float) -> Tensor:
    """Return the gradient of ``|x|_p`` over the last dimension, ``sign(x) (|x| / |x|_p)^(p - 1)``; 0 at 0."""
    if p == 0:
        return torch.zeros_like(x)
    if p == 1:
        return x.sgn()
    norm = torch.linalg.vector_norm(x, p, dim=-1, keepdim=True)
    if math.isinf(p):
        return x.sgn() * (x.abs() == norm)
    ratio = x.abs() / norm.masked_fill(norm == 0, 1)
    return x.sgn() * torch.where(x == 0, 0.0, ratio ** (p - 1))
