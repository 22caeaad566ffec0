"""Layer, group, instance and RMS normalisation: y = w x^ + b, with x^ = (x - mean) / std over some dimensions.

The tangent is ``w dx^ + tw x^ + tb``, where

    dx^ = (tx - mean(tx) - x^ mean(x^ tx)) / std

projects the tangent onto what leaves mean and norm unchanged. For RMS normalisation ``mean(tx)`` is missing. The map
from tx to dx^ is symmetric, so that PyTorch's fused kernels for its transpose (``..._backward``) compute it too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.folding import scale_tangent, total
from fwdgrad.dual.forms import has_tangent, per_direction
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, structured, tangent

_aten = torch.ops.aten


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
    if not has_tangent(input, weight, bias):
        return torch.layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enable)
    first = input.dim() - len(normalized_shape)
    t = tangent(input)
    if _is_fused(input, weight, bias):
        y, mean, inverse = torch.native_layer_norm(input, normalized_shape, weight, bias, eps)
        if t is not None:
            rest = (input, normalized_shape, mean, inverse, None, None, [True, False, False])
            t = per_direction(lambda tk: _aten.native_layer_norm_backward(tk, *rest)[0], t)
        normalized = None if structured(weight) is None else (input - mean).mul_(inverse)
        return _affine(y, t, normalized, weight, bias, first)
    y = torch.layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enable)
    dims = tuple(range(first - input.dim(), 0))
    normalized, inverse = _standardized(input, dims, eps)
    return _affine(y, _projected(t, normalized, inverse, dims), normalized, weight, bias, first)


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
    if not has_tangent(input, weight, bias) or not _is_fused(input, weight, bias):
        y = torch.group_norm(input, num_groups, weight, bias, eps, cudnn_enabled)
        return _grouped(y, input, num_groups, weight, bias, eps) if has_tangent(input, weight, bias) else y
    sizes = (*_sizes(input), num_groups)
    y, mean, inverse = torch.native_group_norm(_packed(input), weight, bias, *sizes, eps)
    return _grouped_fused(y, input, mean, inverse, sizes, weight, bias)


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
    if use_input_stats and _is_fused(input, weight, bias):
        sizes = (*_sizes(input), input.shape[1])
        _, mean, inverse = torch.native_group_norm(_packed(input), None, None, *sizes, eps)
        return _grouped_fused(y, input, mean, inverse, sizes, weight, bias)
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


def _grouped_fused(
    y: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    sizes: tuple[int, int, int, int],
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Do ``_grouped`` by PyTorch's kernels, with mean and 1 / std of each group (N, G) given."""
    t = tangent(x)
    if t is not None:
        rest = (_packed(x), mean, inverse, None, *sizes, [True, False, False])
        t = per_direction(lambda tk: _aten.native_group_norm_backward(_packed(tk), *rest)[0], t)
    normalized = None
    if structured(weight) is not None:
        each = (*x.shape[:2], *(1,) * (x.dim() - 2))
        mean, inverse = (s.repeat_interleave(sizes[1] // sizes[3], 1).view(each) for s in (mean, inverse))
        normalized = (x - mean).mul_(inverse)
    return _affine(y, t, normalized, weight, bias, 1)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return numbers of examples, channels and positions."""
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _packed(x: Tensor) -> Tensor:
    """Return x in a layout that the kernels of group normalisation take."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.detach()
    return x.detach().contiguous()


def _is_fused(*tensors: Tensor | None) -> bool:
    """Return whether PyTorch's kernel, and that of the transpose, take these tensors and keep their statistics."""
    dtypes = {x.dtype for x in tensors if x is not None}
    device = next(x.device.type for x in tensors if x is not None)
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64} and not torch.is_autocast_enabled(device)


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
    y: Tensor, t: Tensor | None, normalized: Tensor | None, weight: Tensor | None, bias: Tensor | None, first: int
) -> Tensor:
    """Attach ``w t + tw x^ + tb``; the parameters' dimensions begin at dimension ``first`` of y."""
    if t is not None and weight is not None:
        t = t * weight.view(*weight.shape, *(1,) * (y.dim() - first - weight.dim()))
    tw = scale_tangent(weight, y, first)
    tb = scale_tangent(bias, y, first)
    if t is None:
        t = total(None if tw is None or normalized is None else tw * normalized, tb)
        assert t is not None
        return dual(y, t.expand(t.shape[0], *y.shape).clone() if t is tb or t.shape[1:] != y.shape else t)
    if tw is not None and normalized is not None:
        t = t.addcmul_(tw, normalized)
    return dual(y, t if tb is None else t.add_(tb))
