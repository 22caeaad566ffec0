"""A parameter displaced along a direction, formed where an operation uses it and dropped after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Displaced(Tensor):
    """Stands for a tensor that ``form()`` returns; has its shape, strides and dtype, but no memory.

    The parameter itself is never written to, so nothing has to be undone, whatever happens in between. What an
    operation writes into the displaced value is lost.
    """

    form: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, like: Tensor, form: Callable[[], Tensor]) -> Displaced:
        displaced = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, layout=like.layout, device=like.device
        )
        displaced.form = form
        return displaced

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Displaced, lambda displaced: displaced.form(), (args, kwargs or {}))
        return func(*args, **kwargs)
