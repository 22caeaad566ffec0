"""Fourier transforms: all are linear (over the reals), and all K directions are transformed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.fallback import make_fallback
from fwdgrad.dual.forms import linear, multilinear, shift
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent


def _one(function: Callable[..., Tensor]) -> None:
    def batched(t: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        return function(t, n, shift(dim), norm)

    linear(function, batched=batched)


def _many(function: Callable[..., Tensor], default: Any) -> None:
    def batched(t: Tensor, s: Any = None, dim: Any = default, norm: str | None = None) -> Tensor:
        if dim is None:
            count = t.dim() - 1 if s is None else len(s)
            dim = tuple(range(-count, 0))
        return function(t, s, [shift(d) for d in dim] if not isinstance(dim, int) else [shift(dim)], norm)

    linear(function, batched=batched)


def _shifting(function: Callable[..., Tensor]) -> None:
    def batched(t: Tensor, dim: Any = None) -> Tensor:
        if dim is None:
            dim = tuple(range(t.dim() - 1))
        return function(t, [shift(d) for d in ((dim,) if isinstance(dim, int) else dim)])

    linear(function, batched=batched)


for _kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    _one(getattr(torch.fft, _kind))
    _many(getattr(torch.fft, f"{_kind}2"), (-2, -1))
    _many(getattr(torch.fft, f"{_kind}n"), None)
_shifting(torch.fft.fftshift)
_shifting(torch.fft.ifftshift)

multilinear(getattr(torch._VF, "stft"), arguments=(0, 4))  # noqa: B009 - in signal and window
_with_window = make_fallback(torch.istft, "torch.istft")


@rule(torch.istft)
def istft(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Transform the tangents. By the window, whose square divides, the fallback is used."""
    if any(tangent(a) is not None for a in (*args, *kwargs.values())):
        return _with_window(input, *args, **kwargs)
    y, t = torch.istft(input, *args, **kwargs), tangent(input)
    return y if t is None else dual(y, torch.stack([torch.istft(tk, *args, **kwargs) for tk in t]))
