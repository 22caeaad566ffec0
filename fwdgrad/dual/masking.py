"""Large tangents behind a ReLU wait to be masked until they are needed."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from fwdgrad.dual.errors import DualError
from fwdgrad.dual.sharing import ALONE, holders


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
        if sys.getrefcount(t) == 3 and holders(t) in ALONE:
            return torch.ops.aten.threshold_backward.grad_input(t, y, 0, grad_input=t)
        return torch.ops.aten.threshold_backward.default(t, y, 0)
