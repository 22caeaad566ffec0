"""What the running evaluation has noted: its K, how it treats operations without a rule, tensors it made dual."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

FALLBACKS = ("warn", "error", "silent")


@dataclass
class Evaluation:
    """One call of ``jvp`` or ``directional_derivatives``."""

    num_directions: int
    fallback: str = "warn"
    promoted: list[weakref.ref[Tensor]] = field(default_factory=list)


_local = threading.local()


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


@contextmanager
def evaluation(num_directions: int, fallback: str = "warn") -> Iterator[Evaluation]:
    """Run one evaluation: gradients enabled (an outer ``no_grad`` does not cut tangents, one inside ``fn`` does)."""
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}")
    if getattr(_local, "evaluation", None) is not None:
        raise RuntimeError("fwdgrad.dual does not nest: a jvp inside a jvp would mix their tangents")
    here = _local.evaluation = Evaluation(num_directions, fallback)
    grad_enabled = torch.is_grad_enabled()
    try:
        if not grad_enabled:
            torch._C._set_grad_enabled(True)
        yield here
    finally:
        torch._C._set_grad_enabled(grad_enabled)
        _local.evaluation = None
        for reference in here.promoted:
            tensor = reference()
            if tensor is not None:
                _demote(tensor)


def _demote(tensor: Tensor) -> None:
    tensor.__class__ = Tensor
    for name in ("_tangent", "_root", "_viewed", "_shared", "_mirror", "_epoch"):
        tensor.__dict__.pop(name, None)
