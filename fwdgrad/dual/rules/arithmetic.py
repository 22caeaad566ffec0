"""Sums, products and quotients: d(x + y) = tx + ty, d(x y) = tx y + x ty, d(x / y) = (tx - (x / y) ty) / y."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, attach
from fwdgrad.dual.inplace import own_or_none, unwritten, write
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import tangent


@rule(torch.add)
def add(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """Push tx + alpha ty."""
    z = torch.add(input, other) if alpha == 1 else torch.add(input, other, alpha=alpha)
    tx, ty = tangent(input), tangent(other)
    return _sum(z, input, tx, other, ty, alpha)


@rule(torch.sub)
def sub(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """Push tx - alpha ty."""
    z = torch.sub(input, other) if alpha == 1 else torch.sub(input, other, alpha=alpha)
    return _sum(z, input, tangent(input), other, tangent(other), -alpha)


@rule(torch.rsub, Tensor.__rsub__)
def rsub(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """Push ty - alpha tx."""
    z = torch.rsub(input, other) if alpha == 1 else torch.rsub(input, other, alpha=alpha)
    tx, ty = tangent(input), tangent(other)
    return _sum(z, other, ty, input, None if tx is None else tx * alpha, -1)


def _sum(z: Tensor, x: Any, tx: Tensor | None, y: Any, ty: Tensor | None, alpha: Any) -> Tensor:
    """Attach ``tx + alpha ty``."""
    if ty is None:
        return z if tx is None else attach(z, tx, x)
    if tx is None:
        return attach(z, ty, y) if alpha == 1 else attach(z, ty * alpha)
    n = z.dim()
    return attach(z, torch.add(align(tx, n), align(ty, n), alpha=alpha))


@rule(torch.mul)
def mul(input: Any, other: Any) -> Tensor:
    """Push tx y + x ty."""
    z = torch.mul(input, other)
    tx, ty = tangent(input), tangent(other)
    if ty is None:
        return z if tx is None else attach(z, align(tx, z.dim()) * other)
    if tx is None:
        return attach(z, align(ty, z.dim()) * input)
    n = z.dim()
    return attach(z, torch.addcmul(align(tx, n) * other, align(ty, n), input))


@rule(torch.div)
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """Push (tx - z ty) / y; rounded quotients have no tangent."""
    z = torch.div(input, other, rounding_mode=rounding_mode)
    if rounding_mode is not None:
        return z
    tx, ty = tangent(input), tangent(other)
    t = None if tx is None else align(tx, z.dim()) / other
    if ty is not None:
        second = align(ty, z.dim()) * (z / other)
        t = -second if t is None else t - second
    return attach(z, t)


@rule(Tensor.__rdiv__, Tensor.__rtruediv__)
def rdiv(input: Tensor, other: Any) -> Tensor:
    """Push the tangent of y / x."""
    return div(other, input)


@rule(Tensor.add_, Tensor.__iadd__)
def add_(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """Add alpha ty to tx in place."""
    return _add_to(input, other, alpha, "Tensor.add_")


@rule(Tensor.sub_, Tensor.__isub__)
def sub_(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """Subtract alpha ty from tx in place."""
    return _add_to(input, other, -alpha, "Tensor.sub_")


def _add_to(x: Tensor, y: Any, alpha: Any, name: str) -> Tensor:
    ty = tangent(y)
    if ty is not None:
        own_or_none(x, name, True).add_(align(ty, x.dim()), alpha=alpha)
    else:
        tangent(x)  # which may have been waiting for the value that changes now
    return Tensor.add_(x, y, alpha=alpha)


@rule(Tensor.mul_, Tensor.__imul__)
def mul_(input: Tensor, other: Any) -> Tensor:
    """Scale tx in place, then add x ty."""
    ty = tangent(other)
    target = own_or_none(input, "Tensor.mul_", ty is not None)
    kept, factor = unwritten(input, input), unwritten(other, input)
    if ty is None:
        if target is not None:
            target.mul_(factor)
    else:  # all of it before any is written: ty may lie in the same memory
        target.copy_(torch.addcmul(target * factor, align(ty, input.dim()), kept))
    return Tensor.mul_(input, other)


@rule(torch.addcmul)
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """Push tx + value (t1 y2 + y1 t2)."""
    z = torch.addcmul(input, tensor1, tensor2, value=value)
    return _add_terms(z, input, (tangent(tensor1), tensor2, value), (tangent(tensor2), tensor1, value))


@rule(torch.addcdiv)
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """Push tx + value (t1 / y2 - y1 t2 / y2^2)."""
    z = torch.addcdiv(input, tensor1, tensor2, value=value)
    by_second = None if (t2 := tangent(tensor2)) is None else t2
    factor = None if by_second is None else -tensor1 / (tensor2 * tensor2)
    return _add_terms(z, input, (tangent(tensor1), 1 / tensor2, value), (by_second, factor, value))


def _add_terms(z: Tensor, input: Tensor, *terms: tuple[Tensor | None, Any, Any]) -> Tensor:
    n = z.dim()
    tx = tangent(input)
    t = None
    for tk, factor, value in terms:
        if tk is not None:
            term = align(tk, n) * factor * value
            t = term if t is None else t + term
    if t is None:
        return attach(z, tx, input)
    return attach(z, t if tx is None else align(tx, n) + t)


@rule(torch.lerp)
def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """Z = x + w (y - x): tangent (1 - w) tx + w ty + (y - x) tw."""
    z = torch.lerp(input, end, weight)
    n = z.dim()
    tx, ty, tw = tangent(input), tangent(end), tangent(weight)
    parts = [(tx, 1 - weight), (ty, weight), (tw, None if tw is None else end - input)]
    terms = [align(t, n) * factor for t, factor in parts if t is not None]
    return attach(z, sum(terms[1:], terms[0]) if terms else None)


@rule(Tensor.copy_)
def copy_(input: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Copy primal and tangents."""
    return write(input, src, "Tensor.copy_")


def _overwriting(name: str) -> Any:
    method = getattr(Tensor, name)

    def overwrite(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = own_or_none(input, f"Tensor.{name}", False)
        if target is not None:
            target.zero_()
        return method(input, *args, **kwargs)

    return overwrite


for _name in (
    "zero_",
    "normal_",
    "uniform_",
    "bernoulli_",
    "random_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
):
    rule(getattr(Tensor, _name))(_overwriting(_name))


@rule(Tensor.fill_)
def fill_(input: Tensor, value: Any) -> Tensor:
    """Fill with a number, or with a 0-dimensional Dual."""
    t = tangent(value)
    target = own_or_none(input, "Tensor.fill_", t is not None)
    if target is not None:
        target.zero_() if t is None else target.copy_(align(t, input.dim()))
    return Tensor.fill_(input, value)
