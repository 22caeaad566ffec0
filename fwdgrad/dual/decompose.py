"""Functions of PyTorch that are written in Python run on Duals as they are: only their parts need rules.

Such a function begins with ``if has_torch_function(...): return handle_torch_function(...)``, which would send it
straight back here; its body is therefore run with a copy of its globals in which that question is answered by no.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from fwdgrad.dual.tensor import dispatching

_ENTRANCES = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
_MODULES = (
    "torch.nn.functional",
    "torch.functional",
    "torch._tensor",
    "torch.nn.init",
    "torch.special",
    "torch",
    "torch._lowrank",
)


def _never(*args: Any) -> bool:
    return False


def composite(body: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule that runs ``body`` with dispatch switched on: every operation in it meets its own rule."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with dispatching():
            return body(*args, **kwargs)

    return run


def decompose(function: Any) -> Callable[..., Any] | None:
    """Return a rule that runs the body of a Python function of PyTorch on Duals, or None if it is not one."""
    body = getattr(function, "__wrapped__", function)
    if not isinstance(body, types.FunctionType) or body.__module__ not in _MODULES:
        return None
    if {"if_true", "if_false"} <= set(body.__code__.co_freevars):  # F.max_pool2d and its kin, by return_indices
        return composite(_with_parts_decomposed(body))
    if not set(_ENTRANCES) & set(body.__globals__):
        return composite(body) if body is not function else None
    globals_ = {**body.__globals__, **dict.fromkeys(_ENTRANCES, _never)}
    copy = types.FunctionType(body.__code__, globals_, body.__name__, body.__defaults__, body.__closure__)
    copy.__kwdefaults__ = body.__kwdefaults__
    return composite(copy)


def _with_parts_decomposed(chooser: types.FunctionType) -> Callable[..., Any]:
    """Return a function that chooses between two others by a flag, with these two run on Duals."""
    cells = []
    for name, cell in zip(chooser.__code__.co_freevars, chooser.__closure__ or (), strict=True):
        part = decompose(cell.cell_contents) if name in ("if_true", "if_false") else None
        cells.append(cell if part is None else types.CellType(part))
    return types.FunctionType(
        chooser.__code__, chooser.__globals__, chooser.__name__, chooser.__defaults__, tuple(cells)
    )
