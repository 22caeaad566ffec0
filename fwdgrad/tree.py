"""Arithmetic on name -> tensor dicts, read as one long vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product ``sum_name <a[name], b[name]>``, a scalar tensor."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean norm of all entries together, a scalar tensor."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in a.values()]))


def scale(a: Mapping[str, Tensor], alpha: float | Tensor) -> dict[str, Tensor]:
    """Return ``alpha * a``."""
    return {name: alpha * value for name, value in a.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float | Tensor = 1.0) -> dict[str, Tensor]:
    """Return ``a + alpha * b``."""
    return {name: value + alpha * b[name] for name, value in a.items()}
