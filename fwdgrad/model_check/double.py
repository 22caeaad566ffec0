"""Run a user's model and closure in float64, whatever dtypes they were written for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

WIDER: dict[torch.dtype, torch.dtype] = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_CASTS = {Tensor.float: Tensor.double, Tensor.half: Tensor.double, Tensor.bfloat16: Tensor.double}
_CASTS |= {getattr(Tensor, name): getattr(Tensor, "cdouble") for name in ("cfloat", "chalf")}  # noqa: B009 - unknown to mypy


def double_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model whose floating-point parameters and buffers are float64 (complex ones complex128).

    Raises:
        ValueError: if the model cannot be copied.
    """
    try:
        duplicate = copy.deepcopy(model)
    except Exception as error:  # whatever __deepcopy__ of a user's attribute raises
        raise ValueError(
            f"{type(model).__name__} cannot be copied by copy.deepcopy, and the check must not touch the model itself: "
            f"{str(error).splitlines()[0]}"
        ) from error
    for parameter in duplicate.parameters():
        parameter.grad = None
    return duplicate._apply(lambda tensor: tensor.to(WIDER.get(tensor.dtype, tensor.dtype)))


class Double(TorchFunctionMode):
    """Make every operation compute in float64: arguments are widened, and so are the dtypes that a model asks for.

    So a closure's float32 batch, a ``.float()`` in a normalisation and a region of autocast cost no digits. A tensor
    that is written in place keeps its dtype, since it may be somebody's buffer.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return func(*args, **(kwargs or {}))
        func, args, kwargs = widened(func, args, kwargs or {})
        return run(func, args, kwargs)


def widened(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a call with all that is narrow in it made wide."""
    if func in (torch.set_default_dtype, torch.finfo):
        return func, args, kwargs
    name = getattr(func, "__name__", "")
    keep = args[0] if args and is_write(name) else None
    args, kwargs = pytree.tree_map(lambda leaf: leaf if leaf is keep else _wider(leaf), (args, kwargs))
    return _CASTS.get(func, func), args, kwargs


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of PyTorch, outside of any autocast."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return func(*args, **kwargs)
    return func(*args, **kwargs)


def is_write(name: str) -> bool:
    """Say whether a function of this name writes into its first argument."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__int__", "__index__"))
    return name.endswith("_")


def _wider(leaf: Any) -> Any:
    if isinstance(leaf, torch.dtype):
        return WIDER.get(leaf, leaf)
    if isinstance(leaf, Tensor):
        with torch._C.DisableTorchFunctionSubclass():
            dtype = leaf.dtype
        return leaf.to(WIDER[dtype]) if dtype in WIDER else leaf
    return leaf
