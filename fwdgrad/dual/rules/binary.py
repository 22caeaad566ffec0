"""Elementwise functions of two or three arguments, by their partial derivatives.

Where a function has a kink the convention is that of PyTorch's reverse mode: a tie of maximum and minimum halves the
tangent, a clamp to numbers stops it at its bound.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, attach, binary, composite, nondifferentiable
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent

_special = torch.special

binary(
    torch.atan2,
    lambda x, y, z: y / (x * x + y * y),
    lambda x, y, z: -x / (x * x + y * y),
)
binary(torch.hypot, lambda x, y, z: x / z, lambda x, y, z: y / z)
binary(torch.logaddexp, lambda x, y, z: torch.exp(x - z), lambda x, y, z: torch.exp(y - z))
binary(torch.logaddexp2, lambda x, y, z: torch.exp2(x - z), lambda x, y, z: torch.exp2(y - z))
binary(torch.ldexp, lambda x, y, z: 2.0**y, lambda x, y, z: z * math.log(2))
binary(torch.fmod, lambda x, y, z: 1, lambda x, y, z: -torch.div(x, y, rounding_mode="trunc"))
binary(torch.remainder, lambda x, y, z: 1, lambda x, y, z: -torch.div(x, y, rounding_mode="floor"))
binary(torch.copysign, lambda x, y, z: torch.where(x == 0, 0.0, torch.sign(x) * torch.sign(z)), None)


binary(torch.nextafter, lambda x, y, z: torch.ne(x, y), lambda x, y, z: torch.eq(x, y))


def _larger(x: Any, y: Any, z: Tensor) -> Tensor:
    return torch.gt(x, y).to(z.dtype) + 0.5 * torch.eq(x, y)


maximum = binary(torch.maximum, _larger, lambda x, y, z: _larger(y, x, z))
minimum = binary(torch.minimum, lambda x, y, z: _larger(y, x, z), _larger)
binary(
    torch.fmax,  # a number is larger than NaN here, and smaller than NaN below
    lambda x, y, z: _larger(x, y, z) + torch.isnan(y),
    lambda x, y, z: _larger(y, x, z) + torch.isnan(x),
)
binary(
    torch.fmin,
    lambda x, y, z: _larger(y, x, z) + torch.isnan(y),
    lambda x, y, z: _larger(x, y, z) + torch.isnan(x),
)


def _log_where(x: Any, y: Tensor) -> Tensor:
    """The logarithm of y, 0 where x = 0 and y <= 0: the derivative of x log(y) by x in reverse mode."""
    y = torch.as_tensor(y)
    return torch.where(torch.logical_and(torch.as_tensor(x) == 0, y <= 0), 0.0, torch.log(y))


binary(torch.xlogy, lambda x, y, z: _log_where(x, y), lambda x, y, z: x / y, _special.xlogy)
binary(
    _special.xlog1py,
    lambda x, y, z: _log_where(x, 1 + torch.as_tensor(y)),
    lambda x, y, z: x / (1 + y),
)


def _gamma_density(a: Tensor, x: Tensor) -> Tensor:
    """Return the derivative of gammainc by x: x^(a-1) e^-x / Gamma(a)."""
    return torch.exp((a - 1) * torch.log(x) - x - torch.lgamma(a))


def _refuse(name: str) -> Any:
    def by_first(x: Any, y: Any, z: Tensor) -> Tensor:
        raise NotImplementedError(f"{name} has no known derivative with respect to its first argument; detach it")

    return by_first


binary(torch.igamma, _refuse("igamma"), lambda a, x, z: _gamma_density(a, x), _special.gammainc)
binary(torch.igammac, _refuse("igammac"), lambda a, x, z: -_gamma_density(a, x), _special.gammaincc)
binary(_special.zeta, _refuse("zeta"), lambda x, q, z: -x * _special.zeta(x + 1, q))


@rule(torch.polygamma)
def polygamma(input: Any, other: Any) -> Tensor:
    """Push t times the next polygamma; the function has n first, the method x."""
    n, x = (input, other) if isinstance(input, int) else (other, input)
    y, t = torch.polygamma(n, x), tangent(x)
    return attach(y, None if t is None else t * torch.polygamma(n + 1, x))


def _by_base(x: Any, y: Any, z: Tensor) -> Any:
    """The derivative of x^y by x, y x^(y - 1), and 0 where y = 0."""
    if not isinstance(y, Tensor):
        if y == 2:
            return 2 * x
        return 0.0 if y == 0 else y * x ** (y - 1)
    return torch.where(y == 0, torch.zeros_like(z), y * x ** (y - 1))


def _by_exponent(x: Any, y: Any, z: Tensor) -> Tensor:
    """The derivative of x^y by y, x^y log(x), and 0 where x = 0 and y >= 0."""
    if not isinstance(x, Tensor):
        return z * (math.log(x) if isinstance(x, float | int) and x > 0 else torch.log(torch.tensor(x))) if x else 0 * z
    at_zero = (x == 0) if torch.is_complex(z) else torch.logical_and(x == 0, torch.as_tensor(y) >= 0)
    return torch.where(at_zero, torch.zeros_like(z), z * torch.log(x.to(z.dtype)))


binary(torch.pow, _by_base, _by_exponent, named="exponent")
binary(torch.float_power, _by_base, _by_exponent, named="exponent")


@composite(Tensor.__rpow__)
def rpow(input: Tensor, other: Any) -> Tensor:
    """Write y^x."""
    return torch.pow(other, input)


@composite(Tensor.__rmod__)
def rmod(input: Tensor, other: Any) -> Tensor:
    """Write y % x."""
    return torch.remainder(other, input)


@rule(torch.where)
def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """Choose among tangents as among values. As a method it is called on the first value: x.where(condition, y)."""
    if input is None and other is None:
        return torch.where(condition)
    z = torch.where(condition, input, other)
    tx, ty = tangent(input), tangent(other)
    if tx is None and ty is None:
        return z
    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    n = z.dim()
    return attach(z, torch.where(condition, zero if tx is None else align(tx, n), zero if ty is None else align(ty, n)))


@rule(Tensor.where, exact=True)
def where_method(input: Tensor, condition: Tensor, other: Any) -> Any:
    """Do torch.where in the order of the method."""
    return where(condition, input, other)


@rule(torch.clamp)
def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Pass t strictly between two numbers; bounds that are tensors are a maximum and a minimum, each with tangents."""
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        y = input if min is None else maximum(input, min)
        return y if max is None else minimum(y, max)
    z, t = torch.clamp(input, min, max), tangent(input)
    if t is None:
        return z
    if min is None or max is None:
        return dual(z, t * (input < max if min is None else input > min))
    return dual(z, t * ((input > min) & (input < max)))


@rule(torch.clamp_min)
def clamp_min(input: Tensor, min: Any) -> Tensor:
    """Do clamp with a lower bound."""
    return clamp(input, min=min)


@rule(torch.clamp_max)
def clamp_max(input: Tensor, max: Any) -> Tensor:
    """Do clamp with an upper bound."""
    return clamp(input, max=max)


nondifferentiable(torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor, torch.gcd, torch.lcm)
