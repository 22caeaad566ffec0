"""The norm of an estimate and its clipping, whether it lies in ``.grad`` or as factors in the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from fwdgrad.optim import FactoredSGD


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the Euclidean norm of all that the next step of the optimizer will apply, a scalar tensor."""
    if isinstance(optimizer, FactoredSGD):
        return optimizer.grad_norm()
    grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    return torch.nn.utils.get_total_norm(grads)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale the estimate down to the Euclidean norm ``max_norm`` if it is larger; return the norm it had."""
    norm = gradient_norm(optimizer)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if isinstance(optimizer, FactoredSGD):
        optimizer.scale_grad(factor)
    else:
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            if param.grad is not None:
                param.grad.mul_(factor.to(param.grad))
    return norm
