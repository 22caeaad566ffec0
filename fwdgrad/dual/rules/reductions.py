"""Sums and means over dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import linear, shifts


def _over(reduce: Any) -> Any:
    def batched(t: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
        if dim is None or (not isinstance(dim, int) and len(dim) == 0):
            dim = tuple(range(t.dim() - 1))
        return reduce(t, shifts(dim), keepdim, **kwargs) if dim != () else t.clone()

    return batched


linear(torch.sum, batched=_over(torch.sum))
linear(torch.mean, batched=_over(torch.mean))
