"""Reductions, running sums and products, moments, Fourier transforms and complex numbers at awkward points."""

import math
from typing import Any

import pytest
import torch
from checks import check, directions
from torch import Tensor

from fwdgrad.dual.forms import linear
from fwdgrad.dual.tensor import DualError


def _randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("zeros", [(), (2,), (0,), (1, 3), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_products_with_zeros(zeros: tuple[int, ...], dtype: torch.dtype) -> None:
    x = _randn(5, 3, dtype=dtype)
    x[list(zeros), 1] = 0
    check(lambda x: (x.prod(0), x.cumprod(0), x.prod(), x.prod(1, keepdim=True), x[:, 1].cumprod(0)), x)


def test_products_of_one_and_of_nothing() -> None:
    check(lambda x: (x.prod(0), x[:0].prod(0) + x.sum(), x[:1].cumprod(0)), _randn(1, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_running_log_sums(dtype: torch.dtype) -> None:
    check(lambda x: torch.logcumsumexp(x, 1), _randn(3, 5, dtype=dtype) * 3)


def test_running_log_sum_from_minus_infinity() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.logcumsumexp(torch.cat((torch.full((2,), -math.inf, dtype=x.dtype), x)), 0)[2:]

    check(function, _randn(3))


MOMENTS: tuple[Any, ...] = (
    ((), {}),
    ((False,), {}),
    ((1,), {}),
    ((1, False, True), {}),
    (((0, -1),), {"correction": 0}),
    ((), {"dim": 0, "correction": 2, "keepdim": True}),
    ((), {"dim": 1, "unbiased": False}),
)


@pytest.mark.parametrize(("args", "kwargs"), MOMENTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_moments(args: Any, kwargs: Any, dtype: torch.dtype) -> None:
    check(lambda x: (x.var(*args, **kwargs), x.std(*args, **kwargs)), _randn(4, 3, dtype=dtype))
    check(
        lambda x: (*torch.var_mean(x, *args, **kwargs), *torch.std_mean(x, *args, **kwargs)), _randn(4, 3, dtype=dtype)
    )


def test_standard_deviation_of_equal_numbers() -> None:
    check(lambda x: (x.expand(4).std() + x, x.expand(4).var()), _randn(1)[0], differences=False)


def test_covariances() -> None:
    weights = torch.tensor([1, 3, 2, 2])
    check(lambda x, w: torch.cov(x, fweights=weights, aweights=w.abs()), _randn(3, 4), _randn(4) + 2)
    check(torch.corrcoef, _randn(3, 4))
    check(torch.corrcoef, _randn(2, 4, dtype=torch.complex128), rtol=1e-7)


def test_sums_that_pass_over_nan() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.masked_fill(torch.tensor([False, True, False]), math.nan)
        return y.nansum(1), y.nanmean(), y.nansum((0, 1), keepdim=True)

    check(function, _randn(2, 3))


def test_differences_and_integrals() -> None:
    check(lambda y, x: torch.trapezoid(y, x.cumsum(0), dim=0), _randn(5, 2), _randn(5))
    check(lambda y: (torch.trapz(y, dx=0.5), torch.cumulative_trapezoid(y, dim=0)), _randn(4, 3))
    check(lambda x, a: torch.diff(x, 2, 1, prepend=a, append=2 * a), _randn(2, 4), _randn(2, 1))
    check(lambda x: torch.gradient(x, spacing=0.3, dim=1, edge_order=2), _randn(3, 5))
    check(lambda x: torch.renorm(x, 2, 0, 1.0), _randn(4, 3))


TRANSFORMS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_fourier(name: str) -> None:
    real = name in ("rfft", "ihfft")
    x = _randn(3, 4, 5, dtype=torch.float64 if real else torch.complex128)
    one, two, many = (getattr(torch.fft, name + suffix) for suffix in ("", "2", "n"))
    check(lambda x: (one(x, 6, 1, norm="ortho"), two(x), many(x), many(x, s=(3, 4)), many(x, dim=(0, -1))), x)
    check(lambda x: torch.fft.fftshift(x) + torch.fft.ifftshift(x, (0, 1)), x)


def test_short_time_fourier() -> None:
    constant = _randn(8).abs() + 1

    def there_and_back(x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.stft(x, 8, 4, window=window, return_complex=True)
        return spectrum, torch.istft(spectrum * 2, 8, 4, window=constant)

    check(there_and_back, _randn(2, 24), _randn(8).abs() + 1)


def test_complex_numbers() -> None:
    check(torch.complex, _randn(3, 1), _randn(4))
    check(torch.polar, _randn(3, 4).abs(), _randn(3, 4))
    z = _randn(3, 2, dtype=torch.complex128)
    check(lambda z: (z.real, z.imag, torch.view_as_real(z), z.conj(), z.mH, z.abs(), z.angle(), z.sgn()), z)
    check(lambda z: (z.conj().imag, z.conj().resolve_conj(), z.conj_physical(), (-z.conj()).imag.resolve_neg()), z)
    check(lambda x: torch.view_as_complex(x.transpose(0, 1).contiguous()), _randn(3, 2, 2))


def test_mantissa() -> None:
    check(lambda x: torch.frexp(x).mantissa, _randn(5) * 9)


def test_arguments_by_name() -> None:
    x, y = _randn(3, 2), _randn(3, 2)
    check(lambda x, y: (torch.kron(input=x, other=y), torch.kron(x, other=y)), x, y)
    check(lambda x, y: torch.select_scatter(input=x, src=y[:, 0], dim=1, index=0), x, y)
    check(lambda x, y: (torch.pow(x.abs(), exponent=y), torch.atan2(input=x, other=y)), x, y)
    check(lambda x: (torch.sum(input=x, dim=0), torch.flip(input=x, dims=(0,)), x.sum(axis=1, keepdims=True)), x)


def test_an_argument_taken_for_a_constant_is_refused_not_dropped() -> None:
    scaled = linear(lambda x, weight: x.detach() * weight.detach())
    with pytest.raises(DualError, match=r"no rule for its derivative by this argument"):
        directions(scaled, (_randn(3), _randn(3)), (_randn(1, 3), _randn(1, 3)))
