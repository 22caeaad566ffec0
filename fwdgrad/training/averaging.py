"""An exponential moving average of the weights, which is evaluated in their place."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a model whose ``update_parameters(model)``, called after every step, averages its weights.

    ``a <- d a + (1 - d) p`` for each parameter and floating-point buffer, with ``d = min(decay, (1 + n) / (10 + n))``
    after n updates: an average over about the last ``1 / (1 - decay)`` steps, or over the last tenth of a run that is
    still shorter than that. A gradient's estimate that is mostly noise moves the weights at random around where the
    mean estimate leads; the average takes the part of that back that changes within its window.

    Args:
        model: the module in training; its parameters and buffers are copied.
        decay: between 0 and 1; the nearer to 1, the longer the window.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; with a window that
        grows, Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", 2013, arXiv:1212.1824.
    """

    def update(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
        count = int(updates)
        weight = 1.0 - min(decay, (1 + count) / (10 + count))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, weight)
        else:  # a counter, like that of the batches in a BatchNorm layer
            torch._foreach_copy_(averages, values)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
