"""Layer, group, instance and RMS normalisation: y = w x^ + b, with x^ = (x - mean) / std over some dimensions.

The tangent is ``w dx^ + tw x^ + tb``, where

    dx^ = (tx - mean(tx) - x^ mean(x^ tx)) / std

projects the tangent onto what leaves mean and norm unchanged. For RMS normalisation ``mean(tx)`` is missing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.folding import scale_tangent, total
from fwdgrad.dual.forms import has_tangent
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent


@rule(torch.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Normalise over the last dimensions."""
    y = torch.layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enable)
    if not has_tangent(input, weight, bias):
        return y
    dims = tuple(range(-len(normalized_shape), 0))
    normalized, inverse = _standardized(input, dims, eps)
    t = _projected(tangent(input), normalized, inverse, dims)
    return _affine(y, t, normalized, weight, bias, input.dim() - len(dims))


@rule(torch.native_layer_norm)
def native_layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``layer_norm``; the statistics that it returns too come without tangents."""
    _, mean, inverse = torch.native_layer_norm(input, normalized_shape, weight, bias, eps)
    return layer_norm(input, normalized_shape, weight, bias, eps), mean, inverse


@rule(torch.rms_norm)
def rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Push ``w (tx - x^ mean(x^ tx)) / rms + tw x^``, with rms = sqrt(mean(x^2) + eps) over the last dimensions."""
    y = torch.rms_norm(input, normalized_shape, weight, eps)
    if not has_tangent(input, weight):
        return y
    dims = tuple(range(-len(normalized_shape), 0))
    x = _widened(input)
    inverse = torch.rsqrt((x * x).mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    normalized = x * inverse
    t = tangent(input)
    if t is not None:
        t = torch.addcmul(t, normalized, (normalized * t).mean(dims, keepdim=True), value=-1) * inverse
    return _affine(y, t, normalized, weight, None, input.dim() - len(dims))


@rule(torch.group_norm)
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Normalise each group of channels of each example."""
    y = torch.group_norm(input, num_groups, weight, bias, eps, cudnn_enabled)
    if not has_tangent(input, weight, bias):
        return y
    return _grouped(y, input, num_groups, weight, bias, eps)


@rule(torch.instance_norm)
def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Normalise each channel of each example, or, without input statistics, by the running ones (constants)."""
    y = torch.instance_norm(
        input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
    )
    if not has_tangent(input, weight, bias):
        return y
    if use_input_stats:
        return _grouped(y, input, input.shape[1], weight, bias, eps)
    assert running_mean is not None and running_var is not None
    per_channel = (-1, *(1,) * (input.dim() - 2))
    inverse = torch.rsqrt(running_var + eps).view(per_channel)
    t = tangent(input)
    normalized = (input - running_mean.view(per_channel)) * inverse
    return _affine(y, None if t is None else t * inverse, normalized, weight, bias, 1)


def _grouped(y: Tensor, x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Attach the tangent where the statistics are those of each example's groups of channels."""
    groups = (x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    normalized, inverse = _standardized(x.reshape(groups), (-1,), eps)
    t = tangent(x)
    if t is not None:
        t = _projected(t.reshape(t.shape[0], *groups), normalized, inverse, (-1,))
        assert t is not None
        t = t.view(t.shape[0], *x.shape)
    return _affine(y, t, normalized.view(x.shape), weight, bias, 1)


def _widened(x: Tensor) -> Tensor:
    """Return x in the precision that PyTorch's kernels accumulate in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()


def _standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Return x^ and 1 / std."""
    variance, mean = torch.var_mean(_widened(x), dims, correction=0, keepdim=True)
    inverse = variance.add_(eps).rsqrt_()
    return (x - mean).mul_(inverse), inverse


def _projected(t: Tensor | None, normalized: Tensor, inverse: Tensor, dims: tuple[int, ...]) -> Tensor | None:
    """Return ``(t - mean(t) - x^ mean(x^ t)) / std``."""
    if t is None:
        return None
    along = (normalized * t).mean(dims, keepdim=True)
    return (t - t.mean(dims, keepdim=True)).addcmul(normalized, along, value=-1).mul_(inverse)


def _affine(
    y: Tensor, t: Tensor | None, normalized: Tensor, weight: Tensor | None, bias: Tensor | None, first: int
) -> Tensor:
    """Attach ``w t + tw x^ + tb``; the parameters' dimensions begin at dimension ``first`` of y."""
    if t is not None and weight is not None:
        t = t * weight.view(*weight.shape, *(1,) * (y.dim() - first - weight.dim()))
    tw = scale_tangent(weight, y, first)
    tb = scale_tangent(bias, y, first)
    t = total(t, None if tw is None else tw * normalized, tb)
    assert t is not None
    return dual(y, t if t.shape[1:] == y.shape else t.expand(t.shape[0], *y.shape).contiguous())
