"""The table of rules: how a rule gets in under all the spellings of its function, and what happens without one."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad.dual.decompose import decompose
from fwdgrad.dual.fallback import make_fallback
from fwdgrad.dual.inplace import in_place
from fwdgrad.dual.known_wrong import KNOWN_WRONG, make_refusal
from fwdgrad.dual.tensor import RULES, name_of

Rule = TypeVar("Rule", bound=Callable[..., Any])

ALIASES: dict[str, tuple[str, ...]] = {
    "abs": ("absolute",),
    "acos": ("arccos",),
    "acosh": ("arccosh",),
    "asin": ("arcsin",),
    "asinh": ("arcsinh",),
    "atan": ("arctan",),
    "atan2": ("arctan2",),
    "atanh": ("arctanh",),
    "cat": ("concat", "concatenate"),
    "clamp": ("clip",),
    "div": ("divide", "true_divide", "__truediv__", "__div__"),
    "add": ("__add__", "__radd__"),
    "sub": ("subtract", "__sub__"),
    "mul": ("multiply", "__mul__", "__rmul__"),
    "matmul": ("__matmul__",),
    "pow": ("__pow__",),
    "neg": ("negative", "__neg__"),
    "remainder": ("__mod__",),
    "eq": ("__eq__",),
    "ne": ("not_equal", "__ne__"),
    "gt": ("greater", "__gt__"),
    "ge": ("greater_equal", "__ge__"),
    "lt": ("less", "__lt__"),
    "le": ("less_equal", "__le__"),
    "floor_divide": ("__floordiv__",),
    "fix": ("trunc",),
    "trunc": ("fix",),
    "swapaxes": ("swapdims",),
    "transpose": ("swapaxes", "swapdims"),
    "movedim": ("moveaxis",),
    "vstack": ("row_stack",),
}
"""Other names of a function in ``torch`` and ``Tensor`` (its in-place name, with ``_`` at the end, is understood)."""


def spellings(function: Any) -> list[tuple[str, Any]]:
    """Return (name, function) for everything that PyTorch may dispatch on when it means ``function``.

    ``torch.sin`` is also ``Tensor.sin`` and ``torch.special.sin``; functions of other modules (``torch.nn.functional``,
    ``torch.linalg``) are only themselves, since the same name can mean another signature there.
    """
    name = getattr(function, "__name__", "")
    found = [(name, function)]
    own = [getattr(owner, name, None) for owner in (torch, Tensor, torch._C.TensorBase)]
    if name != "__get__" and any(function is f or function == f for f in own if f is not None):
        for spelled in (name, *ALIASES.get(name, ())):
            for owner in (torch, Tensor, torch._C.TensorBase, torch.special):
                candidate = getattr(owner, spelled, None)
                if callable(candidate) and not isinstance(candidate, types.ModuleType):
                    found.append((spelled, candidate))
    return found


def register(handler: Callable[..., Any], *functions: Any, exact: bool = False) -> None:
    """Enter a rule for functions, all their spellings and, unless these have rules, their in-place variants.

    With ``exact``, for the very functions alone: where ``torch.f`` and ``Tensor.f`` differ in signature.
    """
    for function in functions:
        if exact:
            RULES[function] = handler
            continue
        for name, spelled in spellings(function):
            RULES[spelled] = handler
            for owner in _owners(function):
                written = getattr(owner, _in_place_name(name), None)
                if written is not None and (written not in RULES or getattr(RULES[written], "_derived", False)):
                    variant = in_place(handler, f"Tensor.{_in_place_name(name)}")
                    variant._derived = True  # type: ignore[attr-defined]
                    RULES[written] = variant


def _owners(function: Any) -> tuple[Any, ...]:
    """Return where to look for the in-place variant of a function: beside it."""
    name = getattr(function, "__name__", "")
    functional = tuple(owner for owner in (F, torch._C._nn) if getattr(owner, name, None) is function)
    return functional or (torch, Tensor, torch._C.TensorBase)


def _in_place_name(name: str) -> str:
    if name.startswith("__") and name.endswith("__"):
        return f"__i{name[2:]}"
    return f"{name}_"


def rule(*functions: Any, exact: bool = False) -> Callable[[Rule], Rule]:
    """Enter the decorated function as the rule of PyTorch functions, methods or attributes.

    The rule has the signature of the function. It runs with dispatch switched off, so its arguments compute as plain
    primals; ``tangent(x)`` reads the tangents of an argument, (K, *x.shape) or None for zero, and ``dual(y, t)``
    attaches tangents to a result. A rule for ``torch.f`` serves ``Tensor.f`` and, by copying its result,
    ``Tensor.f_``; a rule given for ``Tensor.f_`` itself goes first, and ``exact`` enters it for nothing but the
    functions named. An attribute is named ``Tensor.T.__get__``.

    Example:
        >>> @fwdgrad.dual.rule(torch.sinc)
        ... def sinc(input):
        ...     y, t = torch.sinc(input), tangent(input)
        ...     px = torch.pi * input
        ...     return dual(y, None if t is None else t * torch.where(input == 0, 0, (torch.cos(px) - y) / input))

    A ``torch.autograd.Function`` subclass may be given too: the rule then takes the place of its ``apply`` wherever a
    Dual is among the arguments.
    """

    def enter(handler: Rule) -> Rule:
        for function in functions:
            if isinstance(function, type) and issubclass(function, torch.autograd.Function):
                _register_custom_function(function, handler)
            else:
                register(handler, function, exact=exact)
        return handler

    return enter


OPERATORS: dict[str, Callable[..., Any]] = {}
"""Rules of C++ operators of other libraries, by name; these may not be loaded yet."""


def operator_rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter the decorated function as the rule of C++ operators given by name, as in ``"torchvision::roi_align"``.

    The rule is called with the operator, and then as the operator is.
    """

    def enter(handler: Rule) -> Rule:
        OPERATORS.update(dict.fromkeys(names, handler))
        return handler

    return enter


def _register_custom_function(function: Any, handler: Callable[..., Any]) -> None:
    original = function.apply

    def apply(*args: Any) -> Any:
        if torch.overrides.has_torch_function(args):
            return torch.overrides.handle_torch_function(apply, args, *args)
        return original(*args)

    apply.__qualname__ = f"{function.__name__}.apply"
    function.apply = staticmethod(apply)
    RULES[apply] = handler


def _below_autograd(operator: Any) -> Callable[..., Any]:
    """Return an operator without its derivative in reverse mode: some make a node whatever they are called with."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args, **kwargs)

    call.__name__ = operator.__name__
    return call


def resolve(function: Any) -> Callable[..., Any]:
    """Return, and remember, what to do with a function that no rule was given for.

    A Python function is run on the Duals, operation by operation; one of PyTorch's own falls back to PyTorch's
    forward mode; one whose formula there is known to be wrong raises.
    """
    named = OPERATORS.get(name_of(function)) if isinstance(function, torch._ops.OpOverloadPacket) else None
    if named is not None:
        handler: Callable[..., Any] = functools.partial(named, _below_autograd(function))
    elif function in KNOWN_WRONG:
        handler = make_refusal(function, KNOWN_WRONG[function])
    else:
        handler = decompose(function) or make_fallback(function, name_of(function))
    RULES[function] = handler
    return handler
