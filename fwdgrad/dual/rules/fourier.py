"""Fourier transforms: all are linear (over the reals), and all K directions are transformed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.fallback import make_fallback
from fwdgrad.dual.forms import composite, linear, shift
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


@composite(getattr(torch._VF, "stft"))  # noqa: B009 - mypy does not know it
def stft(
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Tensor:
    """Write the transforms of the frames of the signal, each times the window, which stands in its middle."""
    width = n_fft if win_length is None else win_length
    before = (n_fft - width) // 2
    if align_to_window:
        input = torch.constant_pad_nd(input, (before, before))
    if window is None and width < n_fft:
        window = torch.ones(width, dtype=input.dtype, device=input.device)
    frames = input.unfold(-1, n_fft, n_fft // 4 if hop_length is None else hop_length)
    if window is not None:
        frames = frames * torch.constant_pad_nd(window, (before, n_fft - width - before))
    norm = "ortho" if normalized else None
    if onesided or (onesided is None and not frames.is_complex()):
        out = torch.fft.rfft(frames, norm=norm)
    else:
        out = torch.fft.fft(frames, norm=norm)
    return out.mT if return_complex or (return_complex is None and frames.is_complex()) else torch.view_as_real(out.mT)


_with_window = make_fallback(torch.istft, "torch.istft")


@rule(torch.istft)
def istft(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Transform the tangents. By the window, whose square divides, the fallback is used."""
    if any(tangent(a) is not None for a in (*args, *kwargs.values())):
        return _with_window(input, *args, **kwargs)
    y, t = torch.istft(input, *args, **kwargs), tangent(input)
    return y if t is None else dual(y, torch.stack([torch.istft(tk, *args, **kwargs) for tk in t]))
