"""Elementwise functions of one argument, by their derivatives; those of complex numbers here are holomorphic."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fwdgrad.dual.forms import nondifferentiable, pointwise, unary

_LN2, _LN10 = math.log(2), math.log(10)
_special = torch.special

# Exponentials and logarithms.
unary(torch.exp, lambda x, y: y)
unary(torch.exp2, lambda x, y: _LN2 * y)
unary(torch.expm1, lambda x, y: y + 1)
unary(torch.log, lambda x, y: 1 / x)
unary(torch.log2, lambda x, y: 1 / (_LN2 * x))
unary(torch.log10, lambda x, y: 1 / (_LN10 * x))
unary(torch.log1p, lambda x, y: 1 / (1 + x))

# Powers.
unary(torch.sqrt, lambda x, y: 0.5 / y)
unary(torch.rsqrt, lambda x, y: -0.5 * y * y * y)
unary(torch.square, lambda x, y: 2 * x)
unary(torch.reciprocal, lambda x, y: -y * y)

# Trigonometric and hyperbolic functions.
unary(torch.sin, lambda x, y: torch.cos(x))
unary(torch.cos, lambda x, y: -torch.sin(x))
unary(torch.tan, lambda x, y: 1 + y * y)
unary(torch.asin, lambda x, y: torch.rsqrt(1 - x * x))
unary(torch.acos, lambda x, y: -torch.rsqrt(1 - x * x))
unary(torch.atan, lambda x, y: 1 / (1 + x * x))
unary(torch.sinh, lambda x, y: torch.cosh(x))
unary(torch.cosh, lambda x, y: torch.sinh(x))
unary(torch.asinh, lambda x, y: torch.rsqrt(1 + x * x))
unary(torch.acosh, lambda x, y: torch.rsqrt(x - 1) * torch.rsqrt(x + 1))
unary(torch.atanh, lambda x, y: 1 / (1 - x * x))


def _sinc(x: Tensor, y: Tensor) -> Tensor:
    """(cos(pi x) - sinc(x)) / x, and 0 at 0."""
    return torch.where(x == 0, torch.zeros_like(y), (torch.cos(math.pi * x) - y) / x)


unary(torch.sinc, _sinc)

# The error function and its relatives.
unary(torch.erf, lambda x, y: (2 / math.sqrt(math.pi)) * torch.exp(-x * x), _special.erf)
unary(torch.erfc, lambda x, y: (-2 / math.sqrt(math.pi)) * torch.exp(-x * x), _special.erfc)
unary(torch.erfinv, lambda x, y: (math.sqrt(math.pi) / 2) * torch.exp(y * y), _special.erfinv)
unary(_special.erfcx, lambda x, y: 2 * x * y - 2 / math.sqrt(math.pi))
unary(_special.ndtr, lambda x, y: torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))
unary(_special.ndtri, lambda x, y: math.sqrt(2 * math.pi) * torch.exp(0.5 * y * y))
unary(_special.log_ndtr, lambda x, y: math.sqrt(2 / math.pi) / _special.erfcx(-x / math.sqrt(2)))

# Gamma functions; polygamma(n, x) has x second.
unary(torch.lgamma, lambda x, y: torch.digamma(x), _special.gammaln)
unary(torch.digamma, lambda x, y: torch.polygamma(1, x), _special.digamma, _special.psi)
unary(torch.mvlgamma, lambda x, y, p: _mvlgamma(x, p), _special.multigammaln)


def _mvlgamma(x: Tensor, p: int) -> Tensor:
    return sum((torch.digamma(x - 0.5 * j) for j in range(1, p)), torch.digamma(x))


# Bessel functions.
unary(torch.i0, lambda x, y: _special.i1(x), _special.i0)
unary(_special.i0e, lambda x, y: _special.i1e(x) - torch.sign(x) * y)
unary(_special.i1, lambda x, y: _special.i0(x) - _over(y, x, 0.5))
unary(_special.i1e, lambda x, y: _special.i0e(x) - torch.sign(x) * y - _over(y, x, 0.5))
unary(_special.bessel_j0, lambda x, y: -_special.bessel_j1(x))
unary(_special.bessel_j1, lambda x, y: _special.bessel_j0(x) - _over(y, x, 0.5))
unary(_special.bessel_y0, lambda x, y: -_special.bessel_y1(x))
unary(_special.bessel_y1, lambda x, y: _special.bessel_y0(x) - y / x)
unary(_special.modified_bessel_i0, lambda x, y: _special.modified_bessel_i1(x))
unary(_special.modified_bessel_i1, lambda x, y: _special.modified_bessel_i0(x) - _over(y, x, 0.5))
unary(_special.modified_bessel_k0, lambda x, y: -_special.modified_bessel_k1(x))
unary(_special.modified_bessel_k1, lambda x, y: -_special.modified_bessel_k0(x) - y / x)
unary(_special.scaled_modified_bessel_k0, lambda x, y: y - _special.scaled_modified_bessel_k1(x))
unary(_special.scaled_modified_bessel_k1, lambda x, y: y - _special.scaled_modified_bessel_k0(x) - y / x)
unary(_special.spherical_bessel_j0, lambda x, y: _over(torch.cos(x) - y, x, 0.0))


def _over(y: Tensor, x: Tensor, at_zero: float) -> Tensor:
    """Divide, with the limit of the quotient at x = 0."""
    return torch.where(x == 0, torch.full_like(y, at_zero), y / x)


unary(_special.entr, lambda x, y: -torch.log(x) - 1)


def _logit(x: Tensor, y: Tensor, eps: float | None = None) -> Tensor:
    """1 / (x (1 - x)), and 0 where x was clamped to [eps, 1 - eps]."""
    slope = 1 / (x * (1 - x))
    if eps is None:
        return slope
    return torch.where((x < eps) | (x > 1 - eps), torch.zeros_like(slope), slope)


unary(torch.logit, _logit, _special.logit)

# Linear and piecewise linear ones.
unary(torch.neg, lambda x, y: -1)
unary(torch.deg2rad, lambda x, y: math.pi / 180)
unary(torch.rad2deg, lambda x, y: 180 / math.pi)
unary(torch.frac, lambda x, y: 1)
unary(torch.nan_to_num, lambda x, y, *args, **kwargs: torch.isfinite(x))


def _abs(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Re(conj(sgn x) t); for real numbers t sign(x)."""
    return (torch.sgn(x).conj() * t).real if x.is_complex() else t * torch.sign(x)


def _angle(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Im(conj(x) t) / |x|^2, and 0 for real numbers."""
    if not x.is_complex():
        return torch.zeros_like(t)
    square = x.real * x.real + x.imag * x.imag
    return (x.conj() * t).imag / torch.where(square == 0, 1, square)


def _sgn(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(t - y Re(conj(y) t)) / |x|, the part of t across x; 0 for real numbers."""
    if not x.is_complex():
        return torch.zeros_like(t)
    size = x.abs()
    return (t - y * (y.conj() * t).real) * torch.where(size == 0, 0, 1 / size)


pointwise(torch.abs, _abs)
pointwise(torch.angle, _angle)
pointwise(torch.sgn, _sgn)
nondifferentiable(torch.positive)  # the tensor itself, tangents and all
