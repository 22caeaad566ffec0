"""Losses that are a sum or mean of elementwise terms: the tangent is one inner product with the terms' derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.folding import total
from fwdgrad.dual.forms import align, attach, composite
from fwdgrad.dual.registry import register, rule
from fwdgrad.dual.tensor import RULES, dispatching, tangent

_nn = torch._C._nn
_NONE, _MEAN = 0, 1
_NAMES = {"none": 0, "mean": 1, "sum": 2}


def _reduced(t: Tensor | None, derivative: Tensor, like: Tensor, reduction: int) -> Tensor | None:
    """Return the tangents of the reduced loss from t (K, ...) and the derivative of the terms of shape like."""
    if t is None:
        return None
    t = align(t, like.dim())
    if reduction == _NONE:
        return t * derivative
    if t.shape[1:] == derivative.shape and t.dtype is derivative.dtype:
        t = t.reshape(t.shape[0], -1) @ derivative.reshape(-1)
    else:
        t = (t * derivative).flatten(1).sum(1)
    return t / like.numel() if reduction == _MEAN else t


def _elementwise(function: Callable[..., Tensor], derivative: Callable[..., tuple[Any, Any]]) -> None:
    """Enter ``f(x, y, reduction, *parameters)``; ``derivative(x, y, *parameters)`` gives the partial derivatives."""

    def handler(input: Tensor, target: Tensor, reduction: int = _MEAN, *parameters: Any) -> Tensor:
        z = function(input, target, reduction, *parameters)
        tx, ty = tangent(input), tangent(target)
        if tx is None and ty is None:
            return z
        x, y = torch.broadcast_tensors(input.detach(), target.detach())
        by_x, by_y = derivative(x, y, *parameters)
        t = _reduced(tx, by_x, x, reduction)
        return attach(z, total(t, _reduced(ty, by_y, x, reduction)))

    register(handler, function)


def _odd(derivative: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Make both partial derivatives of a function of x - y."""

    def both(x: Tensor, y: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
        d = derivative(x - y, *parameters)
        return d, -d

    return both


_elementwise(_nn.mse_loss, _odd(lambda d: 2 * d))
_elementwise(_nn.l1_loss, _odd(torch.sign))
_real_l1_loss = RULES[_nn.l1_loss]


@rule(_nn.l1_loss)
def l1_loss(input: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    """Push t sign(x - y); |x - y| of complex numbers has a rule of its own."""
    if not (input.is_complex() or target.is_complex()):
        return _real_l1_loss(input, target, reduction)
    with dispatching():
        size = (input - target).abs()
        return size if reduction == _NONE else size.mean() if reduction == _MEAN else size.sum()


_elementwise(_nn.huber_loss, _odd(lambda d, delta=1.0: d.clamp(-delta, delta)))
_elementwise(_nn.smooth_l1_loss, _odd(lambda d, beta=1.0: torch.sign(d) if beta == 0 else (d / beta).clamp(-1.0, 1.0)))


def _soft_margin(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    s = -torch.sigmoid(-x * y)
    return s * y, s * x


_elementwise(_nn.soft_margin_loss, _soft_margin)


def _reduce(terms: Tensor, reduction: int | str) -> Tensor:
    reduction = _NAMES.get(reduction, reduction)  # type: ignore[arg-type]
    return terms if reduction == _NONE else terms.mean() if reduction == _MEAN else terms.sum()


@composite(_nn.binary_cross_entropy)
def binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    """Write -w (y log x + (1 - y) log(1 - x)), logarithms no less than -100."""
    terms = (target - 1) * torch.log1p(-input).clamp(min=-100) - target * torch.log(input).clamp(min=-100)
    return _reduce(terms if weight is None else terms * weight, reduction)


@rule(torch.binary_cross_entropy_with_logits)
def bce_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Push t (sigmoid(x) - y), weighted; what else carries a tangent is differentiated through the formula."""
    t = tangent(input)
    plain = all(tangent(a) is None for a in (target, weight, pos_weight))
    if not plain:
        return _bce_with_logits(input, target, weight, pos_weight, reduction)
    z = torch.binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction)
    if t is None:
        return z
    s = torch.sigmoid(input)
    d = s - target if pos_weight is None else s * (1 - target) - pos_weight * target * (1 - s)
    return attach(z, _reduced(t, d if weight is None else d * weight, input, reduction))


@composite()
def _bce_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> Tensor:
    log_weight = 1 if pos_weight is None else (pos_weight - 1) * target + 1
    terms = (1 - target) * input + log_weight * torch.nn.functional.softplus(-input, 1, 1e9)
    return _reduce(terms if weight is None else terms * weight, reduction)


@composite(torch.kl_div)
def kl_div(input: Tensor, target: Tensor, reduction: int = 1, *, log_target: bool = False) -> Tensor:
    """Write y (log y - x), or exp(y) (y - x) for a target given as logarithms."""
    terms = torch.exp(target) * (target - input) if log_target else torch.xlogy(target, target) - target * input
    return _reduce(terms, reduction)


@composite(torch.poisson_nll_loss)
def poisson_nll_loss(
    input: Tensor, target: Tensor, log_input: bool, full: bool, eps: float, reduction: int = 1
) -> Tensor:
    """Write exp(x) - y x, or x - y log(x + eps); ``full`` adds Stirling's approximation where y > 1."""
    terms = torch.exp(input) - target * input if log_input else input - target * torch.log(input + eps)
    if full:
        stirling = target * torch.log(target) - target + 0.5 * torch.log(2 * torch.pi * target)
        terms = terms + torch.where(target > 1, stirling, torch.zeros_like(stirling))
    return _reduce(terms, reduction)
