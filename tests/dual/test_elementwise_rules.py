"""Elementwise functions and activations, out of place and in place, real and complex, and at their kinks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import check
from torch import Tensor

S = torch.special
GENERATOR = torch.Generator().manual_seed(0)
REAL = torch.randn(3, 4, dtype=torch.float64, generator=GENERATOR)
UNIT = torch.rand(3, 4, dtype=torch.float64, generator=GENERATOR) * 0.8 + 0.1
COMPLEX = torch.randn(3, 4, dtype=torch.complex128, generator=GENERATOR)
ROW = torch.randn(4, dtype=torch.float64, generator=GENERATOR)
COLUMN = torch.randn(3, 1, dtype=torch.float64, generator=GENERATOR)
NO_REVERSE = ("bessel", "zeta")  # PyTorch has no derivative of these


def names(*listed: str) -> list[str]:
    return " ".join(listed).split()


def find(name: str):
    """Return a function by its name in torch, torch.special (S.) or torch.nn.functional (F.)."""
    owner, _, short = name.rpartition(".")
    return getattr({"": torch, "S": S, "F": F}[owner], short)


EVERYWHERE = names(
    "exp exp2 expm1 sin cos tan atan arctan sinh cosh asinh sinc erf erfc S.erfcx S.ndtr S.log_ndtr i0 S.i0 S.i0e S.i1",
    "S.i1e S.bessel_j0 S.bessel_j1 neg negative deg2rad rad2deg frac nan_to_num abs absolute angle sgn square positive",
    "S.spherical_bessel_j0 S.sinc sigmoid S.expit tanh relu F.relu F.gelu F.silu F.mish F.hardswish F.hardsigmoid",
    "F.hardtanh F.relu6 F.leaky_relu F.elu F.celu F.selu F.softplus F.logsigmoid F.hardshrink F.softshrink F.glu",
    "F.tanhshrink F.softsign F.sigmoid F.tanh F.rrelu",
)
ON_THE_UNIT_INTERVAL = names(
    "log log2 log10 log1p sqrt rsqrt reciprocal asin arcsin acos atanh erfinv S.ndtri lgamma S.gammaln digamma S.psi",
    "logit S.logit S.entr S.bessel_y0 S.bessel_y1 S.modified_bessel_i0 S.modified_bessel_i1 S.modified_bessel_k0",
    "S.modified_bessel_k1 S.scaled_modified_bessel_k0 S.scaled_modified_bessel_k1",
)
HOLOMORPHIC = names(
    "exp exp2 expm1 sin cos tan atan sinh cosh asinh square sigmoid tanh log log2 log10 log1p sqrt rsqrt reciprocal",
    "asin acos acosh atanh neg sinc abs angle sgn",
)
IN_PLACE = names(
    "sin_ sigmoid_ exp_ neg_ abs_ absolute_ arctan_ relu_ tanh_ square_ sgn_ frac_ zero_ floor_ sign_ expm1_ erf_",
    "sinc_",
)
OF_TWO = names(
    "add sub subtract mul multiply div true_divide atan2 hypot logaddexp logaddexp2 fmod remainder maximum minimum",
    "fmax fmin copysign rsub",
)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_function_of_a_real_number(name: str) -> None:
    function = find(name)
    check(lambda x: function(x * 1), REAL, reverse=not any(word in name for word in NO_REVERSE))


@pytest.mark.parametrize("name", ON_THE_UNIT_INTERVAL)
def test_function_on_the_unit_interval(name: str) -> None:
    check(find(name), UNIT, reverse=not any(word in name for word in NO_REVERSE))


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_function_of_a_complex_number(name: str) -> None:
    check(find(name), COMPLEX)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_method(name: str) -> None:
    def write(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 1
        row = y[0]
        getattr(y, name)()
        return y * 2, row + 1

    check(write, REAL)


@pytest.mark.parametrize("name", OF_TWO)
def test_function_of_two_numbers_broadcasts(name: str) -> None:
    function = find(name)
    for x, y in ((REAL, ROW), (ROW, REAL), (COLUMN, ROW)):
        check(function, x, y)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow"])
def test_arithmetic_of_complex_numbers(name: str) -> None:
    for x, y in ((COMPLEX, COMPLEX + 1), (COMPLEX, ROW), (REAL, COMPLEX)):
        check(find(name), x, y)


EXPRESSIONS = {
    "acosh": (lambda x: torch.acosh(x + 1), UNIT),
    "mvlgamma": (lambda x: torch.mvlgamma(x + 3, 3), UNIT),
    "polygamma": (lambda x: (torch.polygamma(1, x), x.polygamma(2), S.polygamma(1, x)), UNIT),
    "logit(eps)": (lambda x: torch.logit(x, 0.3), UNIT),
    "x ** n": (lambda x: (x**3, x**2, x**0, x**-1), REAL),
    "a ** x": (lambda x: (2**x, torch.pow(3.0, x), 0.0 ** x.abs()), REAL),
    "numbers": (lambda x: (1 - x, 1 / x, x - 2, 3 * x, x / 7, -x, +x, 2 + x), REAL),
    "x % a": (lambda x: (x % 0.7, torch.fmod(x, 0.7)), REAL),
    "rounded": (lambda x: (torch.div(x, 0.3, rounding_mode="floor") + x, x.floor() * x, x.round() + x), REAL),
    "clamp": (lambda x: (x.clamp(-0.5, 0.5), x.clamp(0.1), torch.clip(x, max=0.1), x.clamp_min(0.2)), REAL),
    "where": (lambda x: (torch.where(REAL > 0, x, 0.0), x.where(REAL > 0, 1.0), torch.where(REAL > 0, 1.0, x)), REAL),
    "igamma": (lambda x: (torch.igamma(UNIT + 2, x), torch.igammac(UNIT + 2, x)), UNIT),
    "rrelu in evaluation": (lambda x: (F.rrelu(x, training=False), F.threshold(x, 0.1, 2.0)), REAL),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), REAL),
    "augmented": (lambda x: _augmented(x * 1), REAL),
    "inplace=True": (lambda x: [f(x * 1, inplace=True) for f in (F.relu, F.silu, F.elu, F.hardswish, F.mish)], REAL),
    "functions ending in _": (lambda x: [f(x * 1) for f in (torch.sin_, F.elu_, F.leaky_relu_, F.hardtanh_)], REAL),
}


def _augmented(x: Tensor) -> Tensor:
    x += 1
    x *= x.sum()
    x -= 0.5 * x[0]
    x /= 3
    x **= 2
    return x


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression(name: str) -> None:
    function, x = EXPRESSIONS[name]
    check(function, x, reverse=name != "augmented")


def test_function_of_three_numbers() -> None:
    check(torch.addcmul, ROW, REAL, COLUMN)
    check(torch.addcdiv, ROW, REAL, UNIT)
    check(torch.lerp, REAL, ROW, UNIT)
    check(lambda x, y: torch.lerp(x, y, 0.3), REAL, ROW)
    check(torch.clamp, REAL, REAL * 0 - 0.5, REAL * 0 + 0.5)
    check(lambda x, y: torch.where(REAL > 0, x, y), REAL, ROW)
    check(F.prelu, REAL, UNIT[0])
    check(F.prelu, REAL, UNIT[0, :1])


def test_special_function_of_two_numbers() -> None:
    check(torch.pow, UNIT, ROW)
    check(torch.float_power, UNIT, ROW)
    check(torch.xlogy, UNIT, UNIT)
    check(S.xlogy, UNIT, UNIT)
    check(S.xlog1py, UNIT, UNIT)
    check(torch.ldexp, UNIT, REAL)
    check(lambda x: S.zeta(UNIT + 2, x), UNIT, reverse=False)


@pytest.mark.parametrize(
    "name",
    names(
        "abs relu F.relu6 F.hardtanh F.leaky_relu F.elu F.softshrink F.hardshrink sinc F.hardsigmoid F.hardswish",
        "S.i1 S.i1e",
    ),
)
def test_kink_is_passed_as_in_reverse_mode(name: str) -> None:
    check(find(name), torch.tensor([0.0, 1.0, -1.0, 3.0, -3.0], dtype=torch.float64), differences=False)


def test_tie_is_shared_as_in_reverse_mode() -> None:
    x = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    for function in (torch.maximum, torch.minimum):
        check(function, x, x * 1, differences=False)
