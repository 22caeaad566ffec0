"""The forms that most rules take; each enters a rule for the functions it is given, and returns it.

See ``fwdgrad.dual.rules``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.decompose import composite as _composite
from fwdgrad.dual.registry import register
from fwdgrad.dual.tensor import Dual, DualError, blocks, dual, dual_sharing, name_of, tangent, view_of

Rule = Callable[..., Any]


def unary(function: Callable[..., Any], derivative: Callable[..., Any], *aliases: Any) -> Rule:
    """Enter ``y = f(x)`` elementwise with tangent ``t * f'(x)``; ``derivative(x, y, *args, **kwargs)`` is ``f'(x)``.

    Complex functions that take this form are holomorphic.
    """

    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = function(input, *args, **kwargs)
        in_blocks = blocks(input)
        t = tangent(input) if in_blocks is None else None
        if args or kwargs:
            _check_constants(function, args, kwargs)
        if in_blocks is not None:
            slope = derivative(input, y, *args, **kwargs)
            return dual(y, in_blocks.map(lambda t: t * slope))
        return y if t is None else dual(y, t * derivative(input, y, *args, **kwargs))

    register(handler, function, *aliases)
    return handler


def pointwise(function: Callable[..., Any], push: Callable[..., Tensor], *aliases: Any) -> Rule:
    """Enter ``y = f(x)`` elementwise whose tangent is ``push(t, x, y, *args, **kwargs)``, with t (K, *x.shape).

    For formulas that are not a product with ``f'(x)``, or that a fused kernel computes.
    """

    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = function(input, *args, **kwargs)
        in_blocks = blocks(input)
        t = tangent(input) if in_blocks is None else None
        if args or kwargs:
            _check_constants(function, args, kwargs)
        if in_blocks is not None:
            return dual(y, in_blocks.map(lambda t: push(t, input, y, *args, **kwargs)))
        return y if t is None else dual(y, push(t, input, y, *args, **kwargs))

    register(handler, function, *aliases)
    return handler


def binary(
    function: Callable[..., Any],
    by_first: Callable[..., Any] | None,
    by_second: Callable[..., Any] | None,
    *aliases: Any,
    named: str = "other",
) -> Rule:
    """Enter ``z = f(x, y)`` elementwise with broadcasting and tangent ``tx * df/dx + ty * df/dy``.

    The partial derivatives are called as ``by_first(x, y, z, **kwargs)``; None means that it is zero.
    ``named`` is PyTorch's name of the second argument.
    """

    def handler(input: Any, other: Any = None, **kwargs: Any) -> Tensor:
        if other is None:
            other = kwargs.pop(named)
        z = function(input, other, **kwargs)
        t = None
        if by_first is not None and (tx := tangent(input)) is not None:
            t = align(tx, z.dim()) * by_first(input, other, z, **kwargs)
        if by_second is not None and (ty := tangent(other)) is not None:
            by_other = align(ty, z.dim()) * by_second(input, other, z, **kwargs)
            t = by_other if t is None else t + by_other
        return attach(z, t)

    register(handler, function, *aliases)
    return handler


def linear(function: Callable[..., Any], *aliases: Any, batched: Callable[..., Any] | None = None) -> Rule:
    """Enter a function linear in its first argument, with one output or several, views included.

    The tangent is the function of the tangent. Without ``batched`` it is called once for each direction; with it,
    ``batched(t, *args, **kwargs)`` is called once, on t of shape (K, *x.shape), and must leave the leading K alone:
    ``linear(torch.transpose, batched=lambda t, dim0, dim1: t.transpose(shift(dim0), shift(dim1)))``.
    """

    def handler(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = function(input, *args, **kwargs)
        t = tangent(input)
        if args or kwargs:
            _check_constants(function, args, kwargs)
        if t is None or out is input:
            return out
        if batched is not None and input.dim():  # a dimension of a 0-dimensional tensor cannot be shifted
            pushed = batched(t, *args, **kwargs)
        else:
            pushed = per_direction(lambda tk: function(tk, *args, **kwargs), t)
        if isinstance(out, Tensor):
            return view_of(input, out, pushed)
        return type(out)([view_of(input, o, p) for o, p in zip(out, pushed, strict=True)])

    register(handler, function, *aliases)
    return handler


def _check_constants(function: Callable[..., Any], args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    """Raise where an argument that a rule takes for a constant brings a tangent, which would be lost."""
    for argument in (*args, *kwargs.values()):
        if type(argument) is Dual and tangent(argument) is not None:
            raise DualError(f"{name_of(function)}: no rule for its derivative by this argument; pass it detached")


def _by_position(
    args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with those first ones that were given by name put in their places."""
    found, rest = list(args), dict(kwargs)
    while len(found) < len(names) and names[len(found)] in rest:
        found.append(rest.pop(names[len(found)]))
    return tuple(found), rest


def jointly_linear(
    function: Callable[..., Any],
    *aliases: Any,
    arguments: tuple[int, ...] = (0, 1),
    names: tuple[str, ...] = ("input", "other"),
) -> Rule:
    """Enter a function linear in several arguments taken together: ``t = f(ta, tb)``, with zeros for None.

    ``jointly_linear(torch.select_scatter, names=("input", "src"))``; the names are those of the first parameters.
    """

    def handler(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args, kwargs = _by_position(args, kwargs, names)
        _check_constants(function, [a for i, a in enumerate(args) if i not in arguments], kwargs)
        out = function(*args, **kwargs)
        tangents = {i: t for i in arguments if i < len(args) and (t := tangent(args[i])) is not None}
        if not tangents:
            return out

        def push(*pieces: Tensor) -> Tensor:
            given = dict(zip(tangents, pieces, strict=True))
            filled = [given.get(i, _zero_like(a)) if i in arguments else a for i, a in enumerate(args)]
            return function(*filled, **kwargs)

        return dual(out, per_direction(push, *tangents.values()))

    register(handler, function, *aliases)
    return handler


def _zero_like(x: Any) -> Any:
    if isinstance(x, Tensor):
        return torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)
    return type(x)(0)


def multilinear(
    function: Callable[..., Any],
    *aliases: Any,
    arguments: tuple[int, ...] = (0, 1),
    names: tuple[str, ...] = ("input", "other"),
) -> Rule:
    """Enter a function linear in each of several arguments: ``t = f(tx, y) + f(x, ty)``, one by one.

    ``multilinear(torch.linalg.cross)``; the names are those of the first parameters.
    """

    def handler(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args, kwargs = _by_position(args, kwargs, names)
        _check_constants(function, [a for i, a in enumerate(args) if i not in arguments], kwargs)
        out = function(*args, **kwargs)
        total = None
        for i in arguments:
            t = tangent(args[i]) if i < len(args) else None
            if t is None:
                continue
            term = per_direction(lambda tk, i=i: function(*args[:i], tk, *args[i + 1 :], **kwargs), t)
            total = term if total is None else total + term
        return dual(out, total)

    register(handler, function, *aliases)
    return handler


def nondifferentiable(*functions: Any) -> None:
    """Enter functions whose results have no tangent: integers, booleans, piecewise constants, metadata, new tensors."""
    for function in functions:
        register(function, function)


def composite(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a body, written in functions that have rules, as the rule of functions; other rules may call it too.

    ``@composite(torch.nn.functional.pairwise_distance)`` above ``def body(x1, x2, p=2.0, eps=1e-6, keepdim=False)``.
    """

    def enter(body: Callable[..., Any]) -> Callable[..., Any]:
        handler = functools.wraps(body)(_composite(body))
        register(handler, *functions)
        return handler

    return enter


def per_direction(push: Callable[..., Any], *tangents: Tensor) -> Any:
    """Apply ``push`` to the tangents of each direction and stack what it returns along a leading K.

    ``push`` returns one tensor, or a tuple or list of them (then so does this).
    """
    if tangents[0].shape[0] == 1:
        out = push(*[t[0] for t in tangents])
        if isinstance(out, Tensor):
            return out.unsqueeze(0)
        return [o.unsqueeze(0) for o in out]
    outs = [push(*pieces) for pieces in zip(*[t.unbind(0) for t in tangents], strict=True)]
    if isinstance(outs[0], Tensor):
        return torch.stack(outs)
    return [torch.stack(pieces) for pieces in zip(*outs, strict=True)]


def shift(dim: int) -> int:
    """Return where dimension ``dim`` of a primal lies in its tangents, behind the leading K."""
    return dim + 1 if dim >= 0 else dim


def shifts(dims: int | tuple[int, ...] | list[int]) -> Any:
    """Do ``shift`` for one dimension or for several."""
    return shift(dims) if isinstance(dims, int) else [shift(d) for d in dims]


def align(t: Tensor, dim: int) -> Tensor:
    """View tangents (K, *shape) so that shape broadcasts, behind K, against a result with ``dim`` dimensions."""
    missing = dim + 1 - t.dim()
    return t.view(t.shape[0], *(1,) * missing, *t.shape[1:]) if missing > 0 else t


def attach(z: Tensor, t: Tensor | None, *sources: Any) -> Tensor:
    """Do ``dual(z, t)`` for tangents that may still have to be broadcast to (K, *z.shape)."""
    if t is None:
        return z
    if t.numel() == z.numel() * t.shape[0] and t.dim() == z.dim() + 1:
        return dual_sharing(z, t, *sources) if sources else dual(z, t)
    return dual_sharing(z, align(t, z.dim()).expand(t.shape[0], *z.shape), *sources)


def has_tangent(*arguments: Any) -> bool:
    """Return whether any of the arguments carries tangents."""
    return any(type(x) is Dual and x._tangent is not None for x in arguments)
