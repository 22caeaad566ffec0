"""What the running evaluation has noted: its K, how it treats operations without a rule, tensors it made dual."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.variable import zeros as tape_zeros

FALLBACKS = ("warn", "error", "silent")

_local = threading.local()


class Evaluation:
    """One call of ``jvp`` or ``directional_derivatives``, as a context.

    Within it gradients are enabled: an outer ``no_grad`` does not cut tangents, one inside the function does.

    Args:
        num_directions: K.
        fallback: what to do at an operation without a rule: "warn", "error" or "silent".
        taped: whether tangents are recorded (``fwdgrad.dual.tape``) instead of computed.
    """

    def __init__(self, num_directions: int, fallback: str = "warn", taped: bool = False) -> None:
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}")
        self.num_directions = num_directions
        self.fallback = fallback
        self.taped = taped
        self.written_out = False  # an operation has met tangents in blocks and taken them as dense ones
        self.promoted: list[weakref.ref[Tensor]] = []
        self._grad_enabled = True

    def __enter__(self) -> Evaluation:
        if getattr(_local, "evaluation", None) is not None:
            raise RuntimeError("fwdgrad.dual does not nest: a jvp inside a jvp would mix their tangents")
        _local.evaluation = self
        self._grad_enabled = torch.is_grad_enabled()
        if not self._grad_enabled:
            torch._C._set_grad_enabled(True)
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._grad_enabled:
            torch._C._set_grad_enabled(False)
        _local.evaluation = None
        for reference in self.promoted:
            tensor = reference()
            if tensor is not None:
                _demote(tensor)

    def zeros(self, x: Tensor, stride: tuple[int, ...] | None = None) -> Tensor:
        """Return new tangents for a tensor that had none, of these strides if they matter."""
        shape = (self.num_directions, *x.shape)
        if self.taped:
            return tape_zeros(shape, x.dtype, x.device, stride)
        if stride is None:
            return torch.zeros(shape, dtype=x.dtype, device=x.device)
        return torch.empty_strided(shape, stride, dtype=x.dtype, device=x.device).zero_()


evaluation = Evaluation


def current() -> Evaluation:
    """Return the running evaluation.

    Raises:
        RuntimeError: outside of one (a Dual was kept from an earlier evaluation).
    """
    evaluation: Evaluation | None = getattr(_local, "evaluation", None)
    if evaluation is None:
        raise RuntimeError(
            "a Dual is used outside of the evaluation that made it; keep x.detach() instead of x beyond the closure"
        )
    return evaluation


def _demote(tensor: Tensor) -> None:
    tensor.__class__ = Tensor
    for name in ("_tangent", "_root", "_viewed", "_shared", "_mirror", "_epoch", "_joint"):
        tensor.__dict__.pop(name, None)
