"""The fast engine: our own forward-mode AD on dual numbers, which uses the structure of a direction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fwdgrad.dual import directional_derivatives
from fwdgrad.engines.base import Evaluation, Function
from fwdgrad.tangents import Tangent


class Dual:
    """Directional derivatives by :mod:`fwdgrad.dual`; low-rank and per-example tangents are used as factors.

    Args:
        fallback: what to do at an operation without a rule, for which PyTorch's forward mode is used: ``warn`` (once
            for each by name), ``error``, or ``silent``.
    """

    def __init__(self, fallback: str = "warn") -> None:
        self.fallback = fallback

    def __call__(self, fn: Function, params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]) -> Evaluation:
        value, derivatives, aux = directional_derivatives(fn, params, tangents, fallback=self.fallback)
        return Evaluation(value, derivatives.to(torch.promote_types(derivatives.dtype, torch.float32)), aux)
