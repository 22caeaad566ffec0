"""The gradient of a layer's own parameters from its input and the cotangent of its output: outer products, locally.

Nothing here looks beyond one layer. ``LOCAL_GRADIENTS`` maps a layer's class to
``gradient(layer, input, delta) -> {parameter name: gradient}`` with delta = d loss / d output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad

from fwdgrad.models import GroupLinear, PartedLinear

LocalGradient = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]


def _linear(layer: nn.Linear, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """``dW = sum delta x^T``, ``db = sum delta``, over the batch and all positions."""
    delta, x = delta.reshape(-1, layer.out_features), x.reshape(-1, layer.in_features)
    return {"weight": delta.T @ x.to(delta.dtype), "bias": delta.sum(0)}


def _convolution(layer: Any, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """``dW[o, i, t] = sum_p delta[o, p] x[i, p + t]``, ``db[o] = sum_p delta[o, p]``, over the batch and positions."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        padding = layer._reversed_padding_repeated_twice
        x = F.pad(x, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
        pad: tuple[int, ...] = (0,) * len(layer.kernel_size)
    else:
        pad = layer.padding
    gradient = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)
    weight = gradient[len(layer.kernel_size) - 1](
        x.to(delta.dtype), layer.weight.shape, delta, layer.stride, pad, layer.dilation, layer.groups
    )
    return {"weight": weight, "bias": delta.sum((0, *range(2, delta.dim())))}


def _layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """``dw = sum delta x^``, ``db = sum delta`` with the normalised input x^."""
    lead = tuple(range(delta.dim() - len(layer.normalized_shape)))
    normal = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return {"weight": (delta * normal).sum(lead), "bias": delta.sum(lead)}


def _group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """``dw[c] = sum delta[c] x^[c]``, ``db[c] = sum delta[c]``."""
    normal = F.group_norm(x, layer.num_groups, eps=layer.eps)
    rest = (0, *range(2, delta.dim()))
    return {"weight": (delta * normal).sum(rest), "bias": delta.sum(rest)}


def _batch_norm(layer: Any, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """``dw[c] = sum delta[c] x^[c]``, ``db[c] = sum delta[c]``, normalised as the layer does in its mode."""
    own = layer.training or layer.running_mean is None
    mean, var = (None, None) if own else (layer.running_mean, layer.running_var)
    normal = F.batch_norm(x, mean, var, training=own, eps=layer.eps)
    rest = (0, *range(2, delta.dim()))
    return {"weight": (delta * normal).sum(rest), "bias": delta.sum(rest)}


def _embedding(layer: nn.Embedding, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Each token's row gathers the deltas of its occurrences; the padding row gets none."""
    rows = delta.reshape(-1, layer.embedding_dim)
    tokens = x.reshape(-1)
    weight = delta.new_zeros(layer.weight.shape).index_add_(0, tokens, rows)
    if layer.padding_idx is not None:
        weight[layer.padding_idx] = 0
    return {"weight": weight}


def _group_linear(layer: GroupLinear, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """``dW_g = sum delta_g x_g^T``, ``db = sum delta``, over the batch and all positions."""
    delta, x = delta.flatten(0, -3), x.flatten(0, -3)
    return {"weight": torch.einsum("ngo,ngi->goi", delta, x.to(delta.dtype)), "bias": delta.sum(0)}


def _parted_linear(layer: PartedLinear, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """As for a linear layer, with the delta of each group's contribution, ``db = sum delta / groups``."""
    delta, x = delta.flatten(0, -3), x.unflatten(-1, (layer.groups, -1)).flatten(0, -3)
    weight = torch.einsum("ngo,ngi->ogi", delta, x.to(delta.dtype)).reshape(layer.weight.shape)
    return {"weight": weight, "bias": delta.sum((0, 1)) / layer.groups}


LOCAL_GRADIENTS: dict[type[nn.Module], LocalGradient] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.Embedding: _embedding,
    GroupLinear: _group_linear,
    PartedLinear: _parted_linear,
}
