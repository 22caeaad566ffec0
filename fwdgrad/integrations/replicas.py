"""Several processes, each with a replica of the model and its own examples."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from fwdgrad.estimators import Estimator, ForwardGradient


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes of the default group; without one, the tensor itself."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total.div_(dist.get_world_size())


def reduce_derivatives(estimator: Estimator) -> bool:
    """Let the estimator exchange its directional derivatives, if it can be told to; say whether it does.

    Where it cannot, the processes have to average their gradients, as with backpropagation.
    """
    if not isinstance(estimator, ForwardGradient):
        return False
    if estimator.reduce is None:
        estimator.reduce = mean_over_ranks
    return True
