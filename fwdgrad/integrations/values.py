"""Reading plain values out of a running evaluation, whichever engine runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.utils import _pytree as pytree


def plain(value: Any) -> Any:
    """Return a pytree met inside a closure with each tensor as it would be in an ordinary forward pass.

    Inside an evaluation a tensor may carry tangents, or under ``vmap`` stand for one copy per direction, all with the
    same primal. What is to outlive the evaluation (a metric, a logged loss) must be free of both.
    """
    return pytree.tree_map_only(Tensor, _plain, value)


def _plain(tensor: Tensor) -> Tensor:
    with torch._C._DisableFuncTorch():
        while _functorch.is_functorch_wrapped_tensor(tensor):
            batch = _functorch.maybe_get_bdim(tensor)
            tensor = _functorch.get_unwrapped(tensor)
            if batch >= 0:
                tensor = tensor.select(batch, 0)
        return tensor.detach()


def plain_copy(value: Any) -> Any:
    """Return the same as ``plain``, in memory of its own."""
    return pytree.tree_map_only(Tensor, Tensor.clone, plain(value))
