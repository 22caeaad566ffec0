"""Directional derivatives without forward-mode AD: central differences, for functions that have none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fwdgrad import tree
from fwdgrad.engines.base import Evaluation, Function
from fwdgrad.randomness import global_random_state
from fwdgrad.tangents import PerExample, Tangent


class FiniteDifference:
    """Central differences ``(f(params + h v) - f(params - h v)) / 2h``, with an error of order ``h^2 |v|^3``.

    Costs 2K evaluations and one for the value. Random operations must repeat themselves: the global generator's state
    is set back before each evaluation, so that all see the same dropout mask.

    Args:
        step_size: h. By default the cube root of the machine epsilon of the value's dtype (6e-6 in float64, 5e-3 in
            float32), divided by the root mean square of v, which is 1 for the shipped directions.

    Raises:
        ValueError: if the step size is not positive.

    Raises, when called:
        TypeError: if the directions are per example: one displaced parameter cannot hold them.
    """

    def __init__(self, step_size: float | None = None) -> None:
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size must be positive, got {step_size!r}")
        self.step_size = step_size

    def __call__(self, fn: Function, params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]) -> Evaluation:
        with torch.no_grad():
            replay = global_random_state(params.values())
            value, aux = fn(params)
            proceed = global_random_state(params.values())
            num_directions = next(iter(tangents.values())).num_directions
            derivatives = []
            for k in range(num_directions):
                vector = _vector(params, tangents, k)
                step_size = self.step_size or torch.finfo(value.dtype).eps ** (1 / 3) / _root_mean_square(vector)
                ends = []
                for displacement in (step_size, -step_size):
                    replay()
                    ends.append(fn(tree.add(params, vector, displacement))[0])
                derivatives.append((ends[0] - ends[1]) / (2 * step_size))
            proceed()
        stacked = torch.stack(derivatives)
        return Evaluation(value, stacked.to(torch.promote_types(stacked.dtype, torch.float32)), aux)


def _vector(params: Mapping[str, Tensor], tangents: Mapping[str, Tangent], k: int) -> dict[str, Tensor]:
    """Return ``v_k`` alone; the others need not be materialised for it."""
    vector = {}
    for name, param in params.items():
        if isinstance(tangents[name], PerExample):
            tangents[name].materialize()  # says what to use instead
        alpha = torch.zeros(tangents[name].num_directions, dtype=param.dtype, device=param.device)
        alpha[k] = 1
        vector[name] = torch.zeros_like(param)
        tangents[name].add_to_(vector[name], alpha)
    return vector


def _root_mean_square(vector: Mapping[str, Tensor]) -> float:
    count = sum(entries.numel() for entries in vector.values())
    return tree.norm(vector).item() / math.sqrt(count) or 1.0
