"""Where in a model a computation is: the names of the modules being called, and what each was called with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

CLOSURE = "the closure"


class Places:
    """Follows which module of a model is running, by hooks.

    When an exception leaves a module, its name stays on the stack: ``here()`` then says where it was raised.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules(remove_duplicate=True)}
        self._modules = list(model.modules())
        self._stack: list[nn.Module] = []

    def here(self) -> str:
        """Return the name of the innermost module that is running."""
        return self.name(self._stack[-1]) if self._stack else CLOSURE

    def name(self, module: nn.Module) -> str:
        return self._names[id(module)] or "the model itself"

    @contextmanager
    def followed(
        self,
        calls: dict[nn.Module, tuple[Any, Any]] | None = None,
        outputs: dict[nn.Module, list[Tensor]] | None = None,
    ) -> Iterator[None]:
        """Follow the calls of a block.

        Args:
            calls: receives copies of the arguments of each module's first call.
            outputs: receives copies of the tensors that it returned, in the order in which the calls ended.
        """
        self._stack.clear()

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._stack.append(module)
            if calls is not None and module not in calls:
                calls[module] = pytree.tree_map(_copy, (args, kwargs))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            while self._stack and self._stack.pop() is not module:
                pass
            if outputs is not None and module not in outputs:
                outputs[module] = [_copy(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]

        handles: list[Any] = []
        for module in self._modules:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _copy(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    with torch.no_grad(), torch._C.DisableTorchFunction():  # unseen by whoever watches the operations of the model
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
