"""Group and instance normalisation: each group of channels of each example is standardised (see ``layer_norms``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fwdgrad.dual.folding import layout_of
from fwdgrad.dual.forms import has_tangent, per_direction
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.layer_norms import affine, is_fused, projected, standardized
from fwdgrad.dual.tensor import structured, tangent

_aten = torch.ops.aten


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
    if not has_tangent(input, weight, bias) or not is_fused(input, weight, bias):
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
    if use_input_stats and is_fused(input, weight, bias):
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
    return affine(y, None if t is None else t * inverse, normalized, weight, bias, 1)


def _grouped(y: Tensor, x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Attach the tangent where the statistics are those of each example's groups of channels."""
    groups = (x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    normalized, inverse = standardized(x.reshape(groups), (-1,), eps)
    t = tangent(x)
    if t is not None:
        t = projected(t.reshape(t.shape[0], *groups), normalized, inverse, (-1,))
        assert t is not None
        t = t.view(t.shape[0], *x.shape)
    return affine(y, t, normalized.view(x.shape), weight, bias, 1)


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
        layout = layout_of(x)  # PyTorch 2.11 takes the other's layout for granted, and mixes up the entries
        t = per_direction(lambda tk: _aten.native_group_norm_backward(tk.contiguous(memory_format=layout), *rest)[0], t)
    normalized = None
    if structured(weight) is not None:
        each = (*x.shape[:2], *(1,) * (x.dim() - 2))
        mean, inverse = (s.repeat_interleave(sizes[1] // sizes[3], 1).view(each) for s in (mean, inverse))
        normalized = (x - mean).mul_(inverse)
    return affine(y, t, normalized, weight, bias, 1)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return numbers of examples, channels and positions."""
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _packed(x: Tensor) -> Tensor:
    """Return x in a layout that the kernels of group normalisation take."""
    return x.detach().contiguous(memory_format=layout_of(x))
