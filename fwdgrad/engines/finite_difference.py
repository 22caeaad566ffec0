"""Directional derivatives without forward-mode AD: central differences, for functions that have none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fwdgrad.engines.base import Evaluation, Function
from fwdgrad.randomness import global_random_state
from fwdgrad.tangents import Tangent


class FiniteDifference:
    """Central differences ``(f(params + h v) - f(params - h v)) / 2h``, with an error of order ``h^2 |v|^3``.

    Costs 2K evaluations and one for the value. Random operations must repeat themselves: the global generator's state
    is set back before each evaluation, so that all see the same dropout mask.

    Args:
        step_size: h. By default the cube root of the machine epsilon of the value's dtype (6e-6 in float64, 5e-3 in
            float32), divided by the root mean square of v, which is 1 for the shipped directions.

    Raises:
        ValueError: if the step size is not positive.
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
            step_size = self.step_size or torch.finfo(value.dtype).eps ** (1 / 3)
            num_directions = next(iter(tangents.values())).num_directions
            derivatives = []
            for k in range(num_directions):
                ends = []
                for sign in (step_size, -step_size):
                    replay()
                    ends.append(fn(_displaced(params, tangents, k, sign))[0])
                derivatives.append((ends[0] - ends[1]) / (2 * step_size))
            proceed()
        stacked = torch.stack(derivatives)
        return Evaluation(value, stacked.to(torch.promote_types(stacked.dtype, torch.float32)), aux)


def _displaced(
    params: Mapping[str, Tensor], tangents: Mapping[str, Tangent], k: int, step_size: float
) -> dict[str, Tensor]:
    """Return ``params + step_size v_k``."""
    displaced = {}
    for name, param in params.items():
        alpha = torch.zeros(tangents[name].num_directions, dtype=param.dtype, device=param.device)
        alpha[k] = step_size
        displaced[name] = param.clone()
        tangents[name].add_to_(displaced[name], alpha)
    return displaced
