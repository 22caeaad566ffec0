"""Activation functions. f'(x) t is one pass where PyTorch has a kernel that multiplies by f'(x)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.forms import composite, pointwise
from fwdgrad.dual.inplace import own_or_none
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import blocks, dispatching, dual, masked, tangent

_aten = torch.ops.aten
_nn = torch._C._nn
_relu_slope = _aten.threshold_backward.default
_relu_slope_out = _aten.threshold_backward.grad_input


_LARGE = 1 << 16
_ROWS = 640


@rule(torch.relu)
def relu(input: Tensor) -> Tensor:
    """Push t where x > 0, else 0."""
    in_blocks = blocks(input)
    if in_blocks is not None:
        y = torch.relu(input)
        return dual(y, in_blocks.relu(y))
    t = tangent(input)
    if t is None:
        return torch.relu(input)
    if input.dim() == 2 and (1 + t.shape[0]) * input.shape[0] <= _ROWS and t.dtype is input.dtype and type(t) is Tensor:
        return _joint_relu(input, t)
    y = torch.relu(input)
    return masked(y, t, input) if t.numel() >= _LARGE else dual(y, _relu_slope(t, y, 0))


def _joint_relu(x: Tensor, t: Tensor) -> Tensor:
    """Write primal and tangents beside each other, so that a linear layer can take them through one product."""
    count, batch = t.shape[:2]
    memory = torch.empty((1 + count, batch, x.shape[1]), dtype=x.dtype, device=x.device)
    y, pushed = memory[0], memory[1:]
    torch.clamp_min(x, 0, out=y)
    _relu_slope_out(t, y, 0, grad_input=pushed)
    out = dual(y, pushed)
    out._joint = (memory.view(-1, x.shape[1]), pushed)
    return out


@rule(torch.relu_, Tensor.relu_, F.relu_)
def relu_(input: Tensor) -> Tensor:
    """Do relu in place, on primal and tangents."""
    t = own_or_none(input, "relu_", False)
    torch.relu_(input)
    if t is not None:
        _relu_slope_out(t, input, 0, grad_input=t)
    return input


@rule(F.relu)
def functional_relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Do relu, in place or not."""
    return relu_(input) if inplace else relu(input)


def _sigmoid(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return t * (y * (1 - y)) if y.is_complex() else _aten.sigmoid_backward(t, y)


def _tanh(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return t * (1 - y * y) if y.is_complex() else _aten.tanh_backward(t, y)


def _silu(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    if not y.is_complex():
        return _aten.silu_backward(t, x)
    s = torch.sigmoid(x)
    return t * (s * (1 + x * (1 - s)))


pointwise(torch.sigmoid, _sigmoid, torch.special.expit)
pointwise(torch.tanh, _tanh)
pointwise(F.gelu, lambda t, x, y, approximate="none": _aten.gelu_backward(t, x.expand_as(t), approximate=approximate))
pointwise(_nn.silu, _silu)
pointwise(_nn.mish, lambda t, x, y: _aten.mish_backward(t, x))
pointwise(_nn.hardswish, lambda t, x, y: _aten.hardswish_backward(t, x))
pointwise(_nn.hardsigmoid, lambda t, x, y: _aten.hardsigmoid_backward(t, x))
pointwise(_nn.hardtanh, lambda t, x, y, min_val=-1.0, max_val=1.0: _aten.hardtanh_backward(t, x, min_val, max_val))
pointwise(_nn.relu6, lambda t, x, y: _aten.hardtanh_backward(t, x, 0, 6))
pointwise(_nn.leaky_relu, lambda t, x, y, slope=0.01, **kw: _leaky(t, x, kw.get("negative_slope", slope)))
pointwise(_nn.elu, lambda t, x, y, alpha=1.0, scale=1, input_scale=1: _elu(t, x, alpha, scale, input_scale))
pointwise(torch.celu, lambda t, x, y, alpha=1.0: _elu(t, x, alpha, 1, 1 / alpha))
pointwise(
    torch.selu, lambda t, x, y: _elu(t, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1)
)
pointwise(F.softplus, lambda t, x, y, beta=1, threshold=20: _aten.softplus_backward(t, x, beta, threshold))
pointwise(F.logsigmoid, lambda t, x, y: t * torch.sigmoid(-x), _nn.log_sigmoid)
pointwise(F.hardshrink, lambda t, x, y, lambd=0.5: t * (y != 0))
pointwise(torch.hardshrink, lambda t, x, y, lambd=0.5: t * (y != 0))
pointwise(F.softshrink, lambda t, x, y, lambd=0.5: t * (y != 0), _nn.softshrink)
pointwise(torch.threshold, lambda t, x, y, threshold, value: t * (x > threshold))


def _leaky(t: Tensor, x: Tensor, slope: float) -> Tensor:
    return _aten.leaky_relu_backward(t, x, slope, False)


def _elu(t: Tensor, x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    """Scale a' where x > 0: s t; elsewhere s i alpha exp(i x) t."""
    below = (scale * input_scale * alpha) * torch.exp(input_scale * x.clamp(max=0))
    return t * torch.where(x > 0, scale, below)


@rule(F.silu)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Push t sigmoid(x) (1 + x (1 - sigmoid(x)))."""
    if inplace:
        return torch._C._nn.silu_(input) if tangent(input) is None else _in_place(_nn.silu_, input)
    y, t = _nn.silu(input), tangent(input)
    return y if t is None else dual(y, _silu(t, input, y))


def _in_place(function: Any, input: Tensor) -> Tensor:
    with dispatching():
        return function(input)


@composite(_nn.glu)
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Write a sigmoid(b) for the halves a, b of the input."""
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


@composite(torch.prelu)
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Write x where x > 0, else w x, with one w for each channel (dimension 1) or one for all."""
    if input.dim() < 2 or weight.numel() == 1:
        weight = weight.reshape(()) if weight.numel() == 1 else weight
    else:
        weight = weight.reshape(-1, *(1,) * (input.dim() - 2))
    return torch.where(input > 0, input, weight * input)
