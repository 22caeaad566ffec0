"""Linear layer and cross entropy in one (PyTorch 2.13 and later): the chunked kernel computes its gradient inside.

Its reference form, a linear layer and a cross entropy, is used instead; no activation is kept by either.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.decompose import decompose
from fwdgrad.dual.registry import rule

if hasattr(F, "linear_cross_entropy"):
    _reference = decompose(F.linear_cross_entropy)

    @rule(F.linear_cross_entropy)
    def linear_cross_entropy(
        input: Tensor, linear_weight: Tensor, target: Tensor, *, options: Any = None, **kwargs: Any
    ) -> Tensor:
        """Push through the reference form, whatever the chunking options."""
        assert _reference is not None
        return _reference(input, linear_weight, target, options=None, **kwargs)
