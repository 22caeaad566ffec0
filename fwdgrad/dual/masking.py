"""Large tangents behind a ReLU wait to be masked until they are needed."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from fwdgrad.dual.errors import DualError


class Masked:
    """The tangent of a large ``y = relu(x)`` until somebody asks for it: that of x where y > 0.

    By then x is often gone, and the tangent of x can be masked where it lies instead of being copied.
    """

    __slots__ = ("tangents", "version")

    def __init__(self, tangents: Tensor, version: int) -> None:
        self.tangents = tangents
        self.version = version

    def apply(self, y: Tensor) -> Tensor:
        """Return the tangents of y."""
        if y._version != self.version:
            raise DualError("relu: its result was changed in place under no_grad, or through detach(), before its use")
        t = self.tangents
        if sys.getrefcount(t) == 3 and _holders(t) in _ALONE:
            return torch.ops.aten.threshold_backward.grad_input(t, y, 0, grad_input=t)
        return torch.ops.aten.threshold_backward.default(t, y, 0)


def _holders(t: Tensor) -> tuple[int, int]:
    """Return how many tensors share the memory of t, and how many references there are to the one it views."""
    base = t._base
    return torch._C._storage_Use_Count(t.untyped_storage()._cdata), 0 if base is None else sys.getrefcount(base)


_ALONE = (_holders(torch.empty(1)), _holders(torch.empty(1).unsqueeze(0)))  # nobody else sees such a tensor's memory
