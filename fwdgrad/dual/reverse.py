"""Reverse mode by the rules of forward mode: ``vjp``, ``grad`` and ``value_and_grad``.

The function runs on Duals once, with tangents that are recorded instead of computed (``fwdgrad.dual.tape``); the
linear map that the tape then holds is transposed. No autograd, and no second set of rules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fwdgrad.dual.api import check_primal, plain, split_aux
from fwdgrad.dual.running import evaluation
from fwdgrad.dual.tape.graph import Value, pull_back
from fwdgrad.dual.tape.variable import Variable, value_of, variable
from fwdgrad.dual.tensor import seed, tangent


class Tape:
    """One evaluation of a function on recorded tangents, and the transpose of its derivative.

    Args:
        func: takes the primals, as Duals, in a list, and returns ``(output, aux)``.
        primals: floating point or complex tensors.
        fallback: see ``jvp``; in reverse mode an operation without a rule always raises.

    Attributes:
        outputs: the tensors of ``output``, in order; ``pull_back`` takes a cotangent for each.
        spec: the structure of ``output``.
        aux: with its tensors plain.
    """

    def __init__(self, func: Callable[[list[Any]], tuple[Any, Any]], primals: Sequence[Tensor]) -> None:
        self._inputs = [Value(torch.Size((1, *p.shape)), p.dtype, p.device) for p in primals]
        self._results: list[Value | None] = []
        with evaluation(1, taped=True):
            output, aux = func([seed(p, variable(v)) for p, v in zip(primals, self._inputs, strict=True)])
            leaves, self.spec = tree_flatten(output)
            for x in leaves:
                if not isinstance(x, Tensor):
                    raise ValueError(f"func must return tensors, got {type(x).__name__}")
                with torch._C.DisableTorchFunctionSubclass():
                    t = tangent(x)
                    self._results.append(value_of(t) if type(t) is Variable else None)
            self.outputs: list[Tensor] = [plain(x) for x in leaves]
            self.aux = tree_map(plain, aux)

    def pull_back(self, cotangents: Sequence[Tensor | None], retain_graph: bool = False) -> list[Tensor | None]:
        """Return the cotangent of each primal, or None for one that no output depends on.

        Args:
            cotangents: one for each of ``outputs``, of its shape and dtype; None for zero.
            retain_graph: whether the tape is kept for another call; if not, it is freed as it is gone through.

        Raises:
            DualError: if the tape has been used up, or a tensor that it saved was changed in place.
        """
        pairs = [(v, u) for v, u in zip(self._results, cotangents, strict=True) if v is not None and u is not None]
        with torch.no_grad():
            given = [u.detach().unsqueeze(0) for _, u in pairs]
            pulled = pull_back([v for v, _ in pairs], given, self._inputs, retain_graph)
            return [None if u is None else u.squeeze(0) for u in pulled]


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """Compute ``func(*primals)`` and return it with its vector-Jacobian product, as ``torch.func.vjp`` does.

    The product follows PyTorch's convention for complex numbers: <u, J v> = <J' u, v> with Re sum conj(a) b. What
    stops a tangent in ``jvp`` stops a cotangent here: ``detach()``, ``torch.no_grad()``, integers.

    Args:
        func: function of tensors, or pytrees of tensors, to a tensor or pytree of tensors.
        primals: its arguments.
        has_aux: whether ``func`` returns ``(output, aux)``, with ``aux`` not differentiated.

    Returns:
        ``(output, vjp_fn)``, or ``(output, vjp_fn, aux)``. ``vjp_fn(cotangents, retain_graph=True)`` takes a pytree
        like ``output`` and returns a tuple like ``primals``, zero where ``output`` does not depend on them. With
        ``retain_graph=False`` what was saved is freed as it is used, and the next call raises.

    Raises:
        ValueError: if a primal is not a floating point or complex tensor.
        DualError: at an operation without a rule, or whose tangent cannot be transposed, naming it.
    """
    flat, spec = tree_flatten(primals)
    for i, p in enumerate(flat):
        check_primal(i, p)
    tape = Tape(lambda duals: split_aux(func(*tree_unflatten(duals, spec)), has_aux), flat)

    def vjp_fn(cotangents: Any, retain_graph: bool = True) -> Any:
        given, structure = tree_flatten(cotangents)
        if structure != tape.spec:
            raise ValueError(f"cotangents must have the structure of the output, {tape.spec}, got {structure}")
        for i, (u, y) in enumerate(zip(given, tape.outputs, strict=True)):
            _check_cotangent(i, u, y)
        pulled = tape.pull_back(given, retain_graph)
        filled = [torch.zeros_like(p) if u is None else u for u, p in zip(pulled, flat, strict=True)]
        return tree_unflatten(filled, spec)

    output = tree_unflatten(tape.outputs, tape.spec)
    return (output, vjp_fn, tape.aux) if has_aux else (output, vjp_fn)


def grad(func: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Return a function that computes the gradient of a scalar function, as ``torch.func.grad`` does.

    Args:
        func: returns a real 0-dimensional tensor, or ``(value, aux)``.
        argnums: the argument to differentiate by, or a tuple of them; pytrees of tensors.
        has_aux: whether ``func`` returns ``(value, aux)``, with ``aux`` not differentiated.

    Returns:
        A function of the same arguments that returns the gradient, or ``(gradient, aux)``.

    Raises, when called:
        ValueError: if the value is not a real number.
        DualError: see ``vjp``.
    """
    both = value_and_grad(func, argnums, has_aux)

    @functools.wraps(func)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, result = both(*args, **kwargs)
        return (result, value[1]) if has_aux else result

    return gradient


def value_and_grad(
    func: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Return a function that computes a scalar function and its gradient, in this order.

    What ``torch.func.grad_and_value`` returns, the other way round: ``(value, gradient)``, or
    ``((value, aux), gradient)``. See ``grad`` for the arguments. The graph is freed as it is used.
    """

    @functools.wraps(func)
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        chosen = _chosen(args, argnums)
        flat, spec = tree_flatten(chosen)
        for i, p in enumerate(flat):
            check_primal(i, p)

        def run(duals: list[Any]) -> tuple[Any, Any]:
            places = (argnums,) if isinstance(argnums, int) else argnums
            values = tree_unflatten(duals, spec)
            filled = list(args)
            for place, value in zip(places, (values,) if isinstance(argnums, int) else values, strict=True):
                filled[place] = value
            return split_aux(func(*filled, **kwargs), has_aux)

        tape = Tape(run, flat)
        value = tree_unflatten(tape.outputs, tape.spec)
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"func must return one real number, a tensor of shape (), got {got}")
        pulled = tape.pull_back([torch.ones_like(value)])
        filled = [torch.zeros_like(p) if u is None else u for u, p in zip(pulled, flat, strict=True)]
        return (value, tape.aux) if has_aux else value, tree_unflatten(filled, spec)

    return value_and_gradient


def _chosen(args: tuple[Any, ...], argnums: int | tuple[int, ...]) -> Any:
    try:
        return args[argnums] if isinstance(argnums, int) else tuple([args[i] for i in argnums])
    except IndexError:
        raise ValueError(f"argnums={argnums} names an argument that is not there: {len(args)} arrived") from None


def _check_cotangent(i: int, u: Any, y: Tensor) -> None:
    if not isinstance(u, Tensor) or u.shape != y.shape or u.dtype is not y.dtype:
        got = f"{tuple(u.shape)} and {u.dtype}" if isinstance(u, Tensor) else type(u).__name__
        raise ValueError(f"cotangent {i} must have shape {tuple(y.shape)} and dtype {y.dtype}, got {got}")
