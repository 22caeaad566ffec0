"""Who else sees a tensor's memory: what nobody does may be overwritten, or given away."""

from __future__ import annotations

import sys

import torch
from torch import Tensor


def holders(x: Tensor) -> tuple[int, int]:
    """Return how many tensors lie in the memory of x, and how often the one that it views is held."""
    base = x._base
    return torch._C._storage_Use_Count(x.untyped_storage()._cdata), 0 if base is None else sys.getrefcount(base)


ALONE = (holders(torch.empty(1)), holders(torch.empty(1).squeeze(0)))
"""What ``holders`` counts for a tensor that is alone in its memory, and for a view that alone needs its base."""
