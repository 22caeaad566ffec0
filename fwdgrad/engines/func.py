"""The reference engine: ``torch.func.jvp``, under ``torch.func.vmap`` for several directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fwdgrad.engines.base import Evaluation, Function
from fwdgrad.tangents import Tangent


class Func:
    """Directional derivatives by ``torch.func.jvp``; structured tangents are materialised.

    The K directions of a call share one pass of the function, which runs once with all of them under ``vmap``: random
    operations such as dropout draw the same numbers for every direction.
    """

    def __call__(self, fn: Function, params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]) -> Evaluation:
        dense = {name: tangent.materialize() for name, tangent in tangents.items()}
        # Forward mode works on under no_grad, which makes sure that nothing is recorded for a backward pass.
        with torch.no_grad():
            return evaluate(fn, dict(params), dense)


def evaluate(fn: Function, params: dict[str, Tensor], dense: dict[str, Tensor]) -> Evaluation:
    """Evaluate ``fn`` with the K tangents stacked in ``dense``, name -> (K, *shape)."""

    def jvp(tangent: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
        return torch.func.jvp(fn, (params,), (tangent,), has_aux=True)

    if next(iter(dense.values())).shape[0] == 1:
        value, derivative, aux = jvp({name: values[0] for name, values in dense.items()})
        derivatives = derivative.unsqueeze(0)
    else:
        # The primal value and the auxiliary output are the same for every direction, but vmap may have copied them.
        value, derivatives, aux = torch.func.vmap(jvp, randomness="same")(dense)
        value, aux = value[0], torch.utils._pytree.tree_map(lambda x: x[0] if isinstance(x, Tensor) else x, aux)
    return Evaluation(value, derivatives.to(torch.promote_types(derivatives.dtype, torch.float32)), aux)
