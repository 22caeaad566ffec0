"""What the engine is called by: ``jvp``, with the signature of ``torch.func.jvp``, and the form for K directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fwdgrad.dual.running import evaluation
from fwdgrad.dual.tensor import Dual, seed, tangent
from fwdgrad.tangents import Dense, Tangent


def jvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: bool = False,
    fallback: str = "warn",
) -> Any:
    """Compute ``func(*primals)`` and its Jacobian-vector product with ``tangents``, as ``torch.func.jvp`` does.

    No graph is made and nothing is kept. Tangents stop at ``detach()`` and inside a ``torch.no_grad()`` region of
    ``func``, as gradients do in reverse mode.

    Args:
        func: function of tensors, or pytrees of tensors, to a tensor or pytree of tensors.
        primals: its arguments.
        tangents: for each primal a tangent of the same structure, shapes and dtypes.
        has_aux: whether ``func`` returns ``(output, aux)``, with ``aux`` not differentiated.
        fallback: "warn", "error" or "silent": what to do at an operation without a rule of ours, for which PyTorch's
            forward mode is used.

    Returns:
        ``(output, jvp)``, or ``(output, jvp, aux)``.

    Raises:
        ValueError: if a tangent does not have the structure, shape or dtype of its primal.
        DualError: at an operation that cannot be differentiated, naming it.
    """
    flat, spec = tree_flatten(primals)
    flat_tangents, tangent_spec = tree_flatten(tangents)
    if not isinstance(primals, tuple) or spec != tangent_spec:
        raise ValueError(f"primals and tangents must be tuples of the same structure, got {spec} and {tangent_spec}")
    for i, (p, t) in enumerate(zip(flat, flat_tangents, strict=True)):
        _check_leaf(i, p, t)
    with evaluation(1, fallback):
        duals = [seed(p, t.detach().unsqueeze(0)) for p, t in zip(flat, flat_tangents, strict=True)]
        result, aux = split_aux(func(*tree_unflatten(duals, spec)), has_aux)
        outputs, out_spec = tree_flatten(result)
        for value in outputs:
            if not isinstance(value, Tensor):
                raise ValueError(f"func must return tensors, got {type(value).__name__}")
        derivatives = [t[0] if (t := _tangent_of(value)) is not None else None for value in outputs]
        outputs = [plain(value) for value in outputs]
        derivatives = [torch.zeros_like(o) if t is None else t for o, t in zip(outputs, derivatives, strict=True)]
        pair = tree_unflatten(outputs, out_spec), tree_unflatten(derivatives, out_spec)
        return (*pair, tree_map(plain, aux)) if has_aux else pair


def directional_derivatives(
    fn: Callable[[dict[str, Tensor]], tuple[Tensor, Any]],
    params: Mapping[str, Tensor],
    tangents: Mapping[str, Tangent],
    *,
    fallback: str = "warn",
) -> tuple[Tensor, Tensor, Any]:
    """Compute a loss and its derivatives along K directions of named parameters, in one evaluation of ``fn``.

    Args:
        fn: ``fn(params) -> (value, aux)``; ``value`` is a scalar loss, or a vector (B,) of per-example losses.
        params: the point; parameters without a tangent are constants.
        tangents: K directions by name, each of any kind of ``fwdgrad.tangents``.
        fallback: see ``jvp``.

    Returns:
        ``(value, derivatives, aux)``, plain tensors; ``derivatives`` has shape (K,) or (K, B).

    Raises:
        ValueError: if a tangent has no parameter or not its shape, or if the K differ.
    """
    count = _check_directions(params, tangents)
    with evaluation(count, fallback):
        point = {}
        for name, p in params.items():
            t = tangents.get(name)
            if t is None:
                point[name] = p.detach()
            else:
                point[name] = seed(p, t.values if type(t) is Dense else t)
        value, aux = fn(point)
        with torch._C.DisableTorchFunctionSubclass():
            if not isinstance(value, Tensor) or value.dim() > 1:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the value must be a scalar loss or a vector of per-example losses, got {got}")
            derivatives = tangent(value)
            value = value.detach()
            if derivatives is None:
                derivatives = value.new_zeros((count, *value.shape))
            if aux:  # not None and not empty
                aux = tree_map(plain, aux)
            return value, derivatives, aux


def plain(x: Any) -> Any:
    """Return a Dual's primal as a plain tensor; anything else as it is."""
    if type(x) is Dual:
        with torch._C.DisableTorchFunctionSubclass():
            return x.detach()
    return x


def _tangent_of(x: Any) -> Tensor | None:
    with torch._C.DisableTorchFunctionSubclass():
        return tangent(x)


def split_aux(result: Any, has_aux: bool) -> tuple[Any, Any]:
    """Return what a function returned as ``(output, aux)``."""
    if not has_aux:
        return result, None
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"with has_aux=True, func must return (output, aux), got {type(result).__name__}")
    return result


def check_primal(i: int, p: Any) -> None:
    """Raise unless an argument can be differentiated by."""
    if not isinstance(p, Tensor):
        raise ValueError(f"primal {i} must be a tensor, got {type(p).__name__}; close over it instead")
    if type(p) is Dual:
        raise RuntimeError("fwdgrad.dual does not nest: a jvp inside a jvp would mix their tangents")
    if not (p.is_floating_point() or p.is_complex()):
        raise ValueError(f"primal {i} must be floating point or complex, got {p.dtype}; close over it instead")


def _check_leaf(i: int, p: Any, t: Any) -> None:
    check_primal(i, p)
    if not isinstance(t, Tensor):
        raise ValueError(f"tangent {i} must be a tensor, got {type(t).__name__}")
    if p.shape != t.shape or p.dtype != t.dtype:
        raise ValueError(
            f"tangent {i} must have shape {tuple(p.shape)} and dtype {p.dtype}, got {tuple(t.shape)} and {t.dtype}"
        )


def _check_directions(params: Mapping[str, Tensor], tangents: Mapping[str, Tangent]) -> int:
    count = None
    for name, t in tangents.items():
        p = params.get(name)
        if p is None:
            raise ValueError(f"tangent {name!r} has no parameter; the parameters are {sorted(params)}")
        if p.shape != t.shape:
            raise ValueError(f"tangent {name!r} must have shape {tuple(p.shape)}, got {tuple(t.shape)}")
        if count is None:
            count = t.num_directions
        elif count != t.num_directions:
            raise ValueError(f"tangent {name!r} has {t.num_directions} directions, others have {count}")
    if count is None:
        raise ValueError("tangents is empty: there is no direction to differentiate along")
    return count
