"""The reference engine: ``torch.func.jvp``, under ``torch.func.vmap`` for several directions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from fwdgrad.engines.base import Evaluation, Function
from fwdgrad.randomness import global_random_state
from fwdgrad.tangents import Tangent


class Func:
    """Directional derivatives by ``torch.func.jvp``; structured tangents are materialised.

    The K directions of a call share one pass of the function, which runs once with all of them under ``vmap``: random
    operations such as dropout draw the same numbers for every direction.

    Args:
        compile: run the evaluation through ``torch.compile(fullgraph=True)``. The first call also runs it eagerly; if
            the two differ, which PyTorch does not rule out in forward mode, or it cannot be compiled, a warning says so
            and the engine stays eager.
    """

    def __init__(self, compile: bool = False) -> None:
        self.compile = compile
        self._evaluate: Callable[..., Evaluation] | None = None if compile else evaluate

    def __call__(self, fn: Function, params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]) -> Evaluation:
        dense = {name: tangent.materialize() for name, tangent in tangents.items()}
        # Forward mode works on under no_grad, which makes sure that nothing is recorded for a backward pass.
        # Fused attention has no formula in it, the plain one does.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            try:
                if self._evaluate is None:
                    return self._first_compiled(fn, dict(params), dense)
                return self._evaluate(fn, dict(params), dense)
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"engine='func': {str(error).splitlines()[0]} Use engine='dual', which has rules of its own."
                ) from error

    def _first_compiled(self, fn: Function, params: dict[str, Tensor], dense: dict[str, Tensor]) -> Evaluation:
        """Compile, compare with an eager evaluation, and keep the compiled function only if they agree."""
        replay = global_random_state(params.values())
        # fallback_random: the compiled dropout draws what the eager one would.
        compiled = torch.compile(evaluate, fullgraph=True, options={"fallback_random": True})
        self._evaluate = evaluate
        try:
            candidate = compiled(fn, params, dense)
        except Exception as error:  # whatever the compiler raises
            reason = f"it could not be compiled ({str(error).splitlines()[0]})"
        else:
            replay()
            eager = evaluate(fn, params, dense)
            if agree(candidate.value, eager.value) and agree(candidate.derivatives, eager.derivatives):
                self._evaluate = compiled
                return eager
            reason = "its compiled derivatives differ from the eager ones"
        warnings.warn(f"compile=True has no effect on this model: {reason}", stacklevel=4)
        replay()
        return evaluate(fn, params, dense)


def evaluate(fn: Function, params: dict[str, Tensor], dense: dict[str, Tensor]) -> Evaluation:
    """Evaluate ``fn`` with the K tangents stacked in ``dense``, name -> (K, *shape)."""

    def jvp(tangent: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
        value, derivative, aux = torch.func.jvp(fn, (params,), (tangent,), has_aux=True)  # type: ignore[misc]
        return value, derivative, aux

    if next(iter(dense.values())).shape[0] == 1:
        value, derivative, aux = jvp({name: values[0] for name, values in dense.items()})
        derivatives = derivative.unsqueeze(0)
    else:
        # The primal value and the auxiliary output are the same for every direction, but vmap may have copied them.
        value, derivatives, aux = torch.func.vmap(jvp, randomness="same")(dense)
        value, aux = value[0], pytree.tree_map_only(Tensor, lambda tensor: tensor[0], aux)
    return Evaluation(value, derivatives.to(torch.promote_types(derivatives.dtype, torch.float32)), aux)


def agree(compiled: Tensor, eager: Tensor) -> bool:
    """Say whether two evaluations differ by at most a hundredth, which reduced precision explains.

    A tangent lost in one operation changes the derivative in a random direction by a large part of itself.
    """
    return bool((compiled - eager).norm() <= 0.01 * eager.norm() + 1e-6)
