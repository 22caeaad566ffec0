"""Fourier transforms: the adjoint of each goes the other way, in the same normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.table import aten, transpose

transpose(aten._fft_c2c, lambda u, x, dim, normalization, forward: aten._fft_c2c(u, dim, normalization, not forward))


def _pull_r2c(u: Tensor, x: Any, dim: list[int], normalization: int, onesided: bool) -> Tensor:
    """Fill up the half that was left out with zeros, and transform back."""
    last = dim[-1]
    if onesided and u.shape[last] != x.shape[last]:
        whole = torch.zeros(x.shape, dtype=u.dtype, device=u.device)
        whole.narrow(last, 0, u.shape[last]).copy_(u)
        u = whole
    return torch.real(aten._fft_c2c(u, dim, normalization, False))


def _pull_c2r(u: Tensor, x: Any, dim: list[int], normalization: int, last_size: int) -> Tensor:
    """Transform forward; what stood for two conjugate entries counts twice."""
    out = aten._fft_r2c(u, dim, normalization, True)
    twice = u.shape[dim[-1]] - out.shape[dim[-1]]
    if twice > 0:
        out.narrow(dim[-1], 1, twice).mul_(2)
    return out


transpose(aten._fft_r2c, _pull_r2c)
transpose(aten._fft_c2r, _pull_c2r)
