"""A linear function of tangents that is not made of basic operations with transposes: given with its transpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tape.graph import Node
from fwdgrad.dual.tape.variable import Variable, value_of, variable


def linear_map(push: Callable[..., Tensor], pull: Callable[..., Tensor], t: Tensor, y: Tensor, *saved: Any) -> Tensor:
    """Return ``push(t, *saved)``, the tangents of y as a linear function of t; in reverse mode ``pull`` transposes it.

    For rules whose computation PyTorch cannot transpose operation by operation: a custom kernel, a formula that is
    linear as a whole but not in its parts.

    Args:
        push: from the tangents (K, *) of an argument to those of y, (K, *y.shape).
        pull: ``pull(u, *saved)``, its transpose: <u, push(t)> = <pull(u), t>. The leading dimension is 1.
        t: the tangents.
        y: the result.
        saved: what both need; changing one of its tensors in place before the transpose is used is an error.

    Example:
        >>> @fwdgrad.dual.rule(my_filter)
        ... def my_filter_rule(input, kernel):
        ...     y, t = my_filter(input, kernel), tangent(input)
        ...     if t is None:
        ...         return y
        ...     return dual(y, linear_map(my_filter, my_adjoint_filter, t, y, kernel))
    """
    if type(t) is not Variable:
        return push(t, *saved)
    saved = tuple(x.detach() if isinstance(x, Tensor) else x for x in saved)
    tensors = [x for x in saved if isinstance(x, Tensor)]
    node = Node(
        getattr(push, "__name__", "linear_map"), (value_of(t),), lambda u, *rest: (pull(u, *rest),), saved, tensors
    )
    return variable(node.output(torch.Size((t.shape[0], *y.shape)), y.dtype, y.device))
