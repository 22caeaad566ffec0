"""Directions that start inside a computation: tangents given to intermediate values instead of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fwdgrad.dual.api import plain
from fwdgrad.dual.blocks import Blocks
from fwdgrad.dual.running import current, evaluation
from fwdgrad.dual.tensor import dual, seed, tangent
from fwdgrad.tangents import Tangent


def perturbed(fn: Callable[[], tuple[Tensor, Any]], *, fallback: str = "warn") -> tuple[Tensor, Tensor, Any]:
    """Evaluate ``fn() -> (value, aux)``, in which ``perturb`` starts directions, and differentiate its value.

    Returns:
        ``(value, derivatives, aux)``, plain; derivatives of shape (K, *value.shape), one row for each of the K
        directions in the order in which they were started, zero where none reaches the value.
    """
    with evaluation(0, fallback) as running:
        value, aux = fn()
        with torch._C.DisableTorchFunctionSubclass():
            derivatives = tangent(value)
        value = plain(value)
        if derivatives is None:
            derivatives = value.new_zeros((running.num_directions, *value.shape))
        return value, derivatives, tree_map(plain, aux)


def perturb(x: Tensor, tangents: Tensor | Blocks) -> Tensor:
    """Return x with further directions that start here; they follow those that x has already.

    Only inside ``perturbed``. Whatever earlier directions reach must be computed from x, or it would lack rows for the
    new ones; ``bypasses`` tells.

    Args:
        x: the intermediate value.
        tangents: of the new directions, (K, *x.shape), or blocks that share out the entries of x.
    """
    running = current()
    before = running.num_directions
    with torch._C.DisableTorchFunctionSubclass():
        earlier, value = tangent(x), x.detach().clone()
    if before > 0 and earlier is None:
        earlier = running.zeros(value)
    if earlier is not None:
        tangents = torch.cat([earlier, tangents]) if isinstance(tangents, Tensor) else tangents.after(earlier)
    running.num_directions = before + len(tangents)
    return dual(value, tangents)


def bypasses(fn: Callable[[], tuple[Tensor, Any]]) -> bool:
    """Evaluate ``fn() -> (value, aux)``, in which ``perturb`` starts directions; say whether any reaches the value.

    None does where all paths to the value are cut, by ``detach()``.
    """
    with evaluation(0, "silent"):
        value = fn()[0]
        with torch._C.DisableTorchFunctionSubclass():
            return tangent(value) is not None


def keeps_blocks(fn: Callable[[], tuple[Tensor, Any]]) -> bool:
    """Evaluate ``fn() -> (value, aux)``, in which ``perturb`` starts directions in blocks; say whether they stay so.

    They end in a product that takes all of them at the price of one, unless an operation before has no rule for blocks.
    """
    with evaluation(0, "silent") as running:
        fn()
        return not running.written_out


def pushforward(
    fn: Callable[[dict[str, Tensor]], Tensor], params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]
) -> Tensor | None:
    """Return the tangents (K, *y.shape) of ``y = fn(params)`` along directions of named parameters.

    Only inside ``perturbed``; fn's other inputs have to be plain. None if no direction reaches y.
    """
    y = fn({name: seed(param, tangents[name]) for name, param in params.items()})
    with torch._C.DisableTorchFunctionSubclass():
        return tangent(y)
