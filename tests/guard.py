"""The guard: proves that a stretch of code trains without reverse mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

# Everything by which Python reaches reverse mode, as (module, name). What these call in turn (jacobian, hessian,
# checkpoint, ...) ends in one of them, at the latest in the C++ engine, which is replaced as well.
ENTRIES = [
    ("torch.autograd", "backward"),
    ("torch.autograd", "grad"),
    ("torch.autograd.graph", "_engine_run_backward"),
    ("torch.func", "grad"),
    ("torch.func", "grad_and_value"),
    ("torch.func", "hessian"),
    ("torch.func", "jacrev"),
    ("torch.func", "vjp"),
]
# Where such a function may have been imported by name.
HOMES = ("fwdgrad", "torch.autograd", "torch.func", "torch._functorch", "torch.utils.checkpoint", "guard", "test_")


class ReverseModeError(AssertionError):
    """Code under the guard used reverse mode."""


@contextmanager
def assert_no_autograd() -> Iterator[None]:
    """Assert that the block creates no autograd node and calls nothing that runs or builds a backward pass.

    A node takes the next of this thread's sequence numbers when it is created, so none was if the number stands still.
    An entry point raises where it is called, and again at the end of the block in case that was swallowed.
    """
    calls: list[str] = []
    before = torch._C._autograd._get_sequence_nr()
    with ExitStack() as patches:
        for owner, attribute, name in _places():
            patches.enter_context(mock.patch.object(owner, attribute, _refuse(name, calls)))
        engine = mock.Mock(run_backward=_refuse("the C++ engine's run_backward", calls))
        patches.enter_context(mock.patch.object(torch.autograd.Variable, "_execution_engine", engine))
        yield
    if calls:
        raise ReverseModeError(f"called {', '.join(calls)}")
    created = torch._C._autograd._get_sequence_nr() - before
    if created:
        raise ReverseModeError(f"created {created} autograd nodes")


def _refuse(name: str, calls: list[str]) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        raise ReverseModeError(f"called {name}")

    return refuse


def _places() -> list[tuple[Any, str, str]]:
    """Return every (module or class, attribute, name) that holds one of the entries."""
    names = {id(getattr(sys.modules[module], name)): f"{module}.{name}" for module, name in ENTRIES}
    places: list[tuple[Any, str, str]] = [(torch.Tensor, "backward", "Tensor.backward")]
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(HOMES):
            for attribute, value in list(vars(module).items()):
                if id(value) in names and callable(value):
                    places.append((module, attribute, names[id(value)]))
    return places
