"""Directional derivatives without forward-mode AD: differences of the value, for functions that have none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fwdgrad import tree
from fwdgrad.engines.base import Evaluation, Function
from fwdgrad.engines.displaced import Displaced
from fwdgrad.randomness import global_random_state
from fwdgrad.replay import Recent, Replayed
from fwdgrad.tangents import PerExample, Tangent


class FiniteDifference:
    """Central differences ``(f(params + h v) - f(params - h v)) / 2h``, with an error of order ``h^2 |v|^3``.

    Costs 2K evaluations and one for the value. Random operations must repeat themselves: the global generator's state
    is set back before each evaluation, so that all see the same dropout mask. The parameters are not written to. Where
    the tangents are replayed, a displaced parameter exists only while its layer is computed.

    Args:
        step_size: h. By default the cube root of the machine epsilon of the value's dtype (6e-6 in float64, 5e-3 in
            float32), the square root for one-sided differences, divided by the root mean square of v, which is 1 for
            the shipped directions.
        antithetic: use central differences; otherwise ``(f(params + h v) - f(params)) / h``, with an error of order
            ``h |v|^2`` for K + 1 evaluations.
        exact_value: spend an evaluation on the value at ``params``. Otherwise central differences report the mean of
            their 2K values, ``h^2 v^T H v / 2`` above it on average, and what the function returns beside its value
            is taken from one of them, unless it depends on the parameters: that costs the one evaluation again.

    Raises:
        ValueError: if the step size is not positive.

    Raises, when called:
        TypeError: if the directions are per example: one displaced parameter cannot hold them.
    """

    def __init__(self, step_size: float | None = None, antithetic: bool = True, exact_value: bool = True) -> None:
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size must be positive, got {step_size!r}")
        self.step_size = step_size
        self.antithetic = antithetic
        self.exact_value = exact_value

    def __call__(self, fn: Function, params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]) -> Evaluation:
        again = global_random_state(params.values())

        def evaluate(point: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
            again()
            return fn(point)

        with torch.no_grad():
            centre = evaluate(params) if self.exact_value or not self.antithetic else None
            dtype = centre[0].dtype if centre is not None else next(iter(params.values())).dtype
            derivatives, values = [], []
            for k in range(next(iter(tangents.values())).num_directions):
                line = _Line(params, tangents, k)
                step_size = self.step_size or self._default_step_size(dtype) / line.root_mean_square()
                value, aux = evaluate(line.at(step_size))
                if not self.antithetic:
                    assert centre is not None
                    derivatives.append((value - centre[0]) / step_size)
                    continue
                opposite, opposite_aux = evaluate(line.at(-step_size))
                derivatives.append((value - opposite) / (2 * step_size))
                if centre is None and not _same(aux, opposite_aux):
                    centre = evaluate(params)
                values.append((value + opposite) / 2)
        value, aux = (torch.stack(values).mean(0), aux) if centre is None else centre
        stacked = torch.stack(derivatives)
        return Evaluation(value, stacked.to(torch.promote_types(stacked.dtype, torch.float32)), aux)

    def _default_step_size(self, dtype: torch.dtype) -> float:
        return torch.finfo(dtype).eps ** (1 / 3 if self.antithetic else 1 / 2)


class _Line:
    """The points ``params + h v_k`` of one direction."""

    def __init__(self, params: Mapping[str, Tensor], tangents: Mapping[str, Tangent], k: int) -> None:
        self.params = params
        self.replayed = {name: t.select(k) for name, t in tangents.items() if isinstance(t, Replayed)}
        self.vector = {name: _vector(params[name], t, k) for name, t in tangents.items() if name not in self.replayed}

    def at(self, step_size: float) -> dict[str, Tensor]:
        recent = Recent(self.params)
        point = tree.add({name: self.params[name] for name in self.vector}, self.vector, step_size)
        for name, tangent in self.replayed.items():
            param = self.params[name]
            form = partial(_displaced, param, tangent, step_size)
            point[name] = Displaced(param, partial(recent.get, name, param.numel(), form))
        return point

    def root_mean_square(self) -> float:
        if self.replayed:
            return 1.0  # as for all shipped directions; to measure it would be to draw everything once more
        count = sum(entries.numel() for entries in self.vector.values())
        return tree.norm(self.vector).item() / math.sqrt(count) or 1.0


def _vector(param: Tensor, tangent: Tangent, k: int) -> Tensor:
    """Return ``v_k`` alone; the others need not be materialised for it."""
    if isinstance(tangent, PerExample):
        tangent.materialize()  # says what to use instead
    alpha = torch.zeros(tangent.num_directions, dtype=param.dtype, device=param.device)
    alpha[k] = 1
    vector = torch.zeros_like(param)
    tangent.add_to_(vector, alpha)
    return vector


def _displaced(param: Tensor, tangent: Replayed, step_size: float) -> Tensor:
    vector = tangent.materialize()[0]
    if vector.stride() != param.stride():
        return torch.add(param, vector, alpha=step_size)
    return torch.add(param, vector, alpha=step_size, out=vector)  # it was drawn for this, and takes the result


def _same(a: Any, b: Any) -> bool:
    """Say whether two pytrees hold the same numbers."""
    return all(x is y or torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))
