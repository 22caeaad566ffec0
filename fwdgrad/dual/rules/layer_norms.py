"""Layer and RMS normalisation: y = w x^ + b, with x^ = (x - mean) / std over some dimensions.

The tangent is ``w dx^ + tw x^ + tb``, where

    dx^ = (tx - mean(tx) - x^ mean(x^ tx)) / std

projects the tangent onto what leaves mean and norm unchanged. For RMS normalisation ``mean(tx)`` is missing. The map
from tx to dx^ is symmetric, so that PyTorch's fused kernels for its transpose (``..._backward``) compute it too.
"""

from __future__ import annotations

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
    if is_fused(input, weight, bias):
        y, mean, inverse = torch.native_layer_norm(input, normalized_shape, weight, bias, eps)
        if t is not None:
            rest = (input, normalized_shape, mean, inverse, None, None, [True, False, False])
            t = per_direction(lambda tk: _aten.native_layer_norm_backward(tk, *rest)[0], t)
        normalized = None if structured(weight) is None else (input - mean).mul_(inverse)
        return affine(y, t, normalized, weight, bias, first)
    y = torch.layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enable)
    dims = tuple(range(first - input.dim(), 0))
    normalized, inverse = standardized(input, dims, eps)
    return affine(y, projected(t, normalized, inverse, dims), normalized, weight, bias, first)


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
    return affine(y, t, normalized, weight, None, input.dim() - len(dims))


def is_fused(*tensors: Tensor | None) -> bool:
    """Return whether PyTorch's kernel, and that of the transpose, take these tensors and keep their statistics."""
    dtypes = {x.dtype for x in tensors if x is not None}
    device = next(x.device.type for x in tensors if x is not None)
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64} and not torch.is_autocast_enabled(device)


def _widened(x: Tensor) -> Tensor:
    """Return x in the precision that PyTorch's kernels accumulate in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()


def standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Return x^ and 1 / std."""
    variance, mean = torch.var_mean(_widened(x), dims, correction=0, keepdim=True)
    inverse = variance.add_(eps).rsqrt_()
    return (x - mean).mul_(inverse), inverse


def projected(t: Tensor | None, normalized: Tensor, inverse: Tensor, dims: tuple[int, ...]) -> Tensor | None:
    """Return ``(t - mean(t) - x^ mean(x^ t)) / std``."""
    if t is None:
        return None
    along = (normalized * t).mean(dims, keepdim=True)
    return (t - t.mean(dims, keepdim=True)).addcmul(normalized, along, value=-1).mul_(inverse)


def affine(
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
