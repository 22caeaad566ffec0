"""Batch normalisation: y = w z + b with z = (x - mean) / deviation, over the batch or by running statistics.

In training the statistics move with x: with i = 1 / deviation, tz = i (t - mean(t) - z mean(z t)), means per channel.
Running statistics are plain buffers and are updated with the primal, once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fwdgrad.dual.folding import scale_tangent, total
from fwdgrad.dual.forms import attach
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import DualError, tangent


@rule(torch.batch_norm)
def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Push w tz + tw z + tb, as one scaling of t, one of z and a shift for each channel."""
    if tangent(running_mean) is not None or tangent(running_var) is not None:
        raise DualError("batch_norm: running statistics must be plain tensors; pass them detached")
    y = torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    t, tw, tb = tangent(input), scale_tangent(weight, y, 1), scale_tangent(bias, y, 1)
    if t is None and tw is None and tb is None:
        return y
    column = (1, -1, *(1,) * (input.dim() - 2))
    batch = [0, *range(2, input.dim())]
    wide = torch.promote_types(input.dtype, torch.float32)
    if training:
        x = input - input.mean(batch, keepdim=True, dtype=wide)
        i = torch.rsqrt((x * x).mean(batch, keepdim=True) + eps)
    else:
        assert running_mean is not None and running_var is not None
        x = input - running_mean.view(column)
        i = torch.rsqrt(running_var.view(column) + eps)
    shift, factor = tb, None if tw is None else tw * i
    if t is not None:
        scale = i if weight is None else i * weight.view(column)
        if training:
            over = [d + 1 for d in batch]
            shift = total(tb, t.mean(over, keepdim=True, dtype=wide) * -scale)
            factor = total(factor, (t * x).mean(over, keepdim=True) * (-scale * i * i))
        t = t * scale if shift is None else torch.addcmul(shift, t.to(wide), scale)
        shift = None
    return attach(y, total(t, shift, None if factor is None else x * factor), bias)
