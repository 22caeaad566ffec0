"""Every operation of a forward pass by itself: each distinct call is differentiated in all ways on what it got."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fwdgrad.dual.tensor import name_of
from fwdgrad.model_check.compare import Comparison, compare, like_structured, typical_size
from fwdgrad.model_check.double import is_write, run, widened
from fwdgrad.model_check.places import Places
from fwdgrad.randomness import global_random_state

DETACHES = {Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore[attr-defined]
"""What says in so many words that the derivative ends here."""
READS = {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__float__, Tensor.__array__, Tensor.__complex__, torch.tensor}
READS |= {torch.as_tensor, torch.asarray}
"""What turns a tensor into numbers, in which no derivative survives."""
UNINITIALISED = {Tensor.new_empty, Tensor.new_empty_strided, torch.empty_like}
"""What takes shape and dtype from a tensor, and values from wherever memory was free: two calls may differ."""
JITTER = 1e-3
LARGEST = 2**23
"""A part with more values than this to differentiate by is compared within the whole alone."""


@dataclass
class Operation:
    """One distinct call: a function with arguments of certain shapes and flags."""

    name: str
    places: Counter[str] = field(default_factory=Counter)
    comparison: Comparison | None = None
    verdicts: list[str] = field(default_factory=list)


class Audit(TorchFunctionMode):
    """Compares, while a model runs under it, each operation that a derivative passes through.

    The model runs with reverse mode's graph, by which it is known what a derivative passes through. ``cuts`` says
    where it ends: (what ended it, module) with a count.

    Args:
        places: where in the model the run is.
        compared: compare the operations, rather than only list them.
    """

    def __init__(self, places: Places, compared: bool = True) -> None:
        super().__init__()
        self.operations: dict[Any, Operation] = {}
        self.cuts: Counter[tuple[str, str]] = Counter()
        self._detached: list[Tensor] = []
        self._places = places
        self._compared = compared

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DETACHES or func in READS or not torch.is_grad_enabled():
            return self._cut(func, args, kwargs)
        if getattr(func, "__name__", "") != "__get__":
            func, args, kwargs = widened(func, args, kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        active = [i for i, leaf in enumerate(leaves) if _is_active(leaf)]
        if not active or not self._compared or func in UNINITIALISED:
            return run(func, args, kwargs)
        key = (func, str(spec), *map(_signature, leaves))
        operation = self.operations.get(key)
        if operation is None:
            operation = self.operations[key] = Operation(readable(func))
            replay = global_random_state(leaf for leaf in leaves if isinstance(leaf, Tensor))
            saved = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            result = run(func, args, kwargs)
            if _floating(result) or (result is None and is_write(getattr(func, "__name__", ""))):
                proceed = global_random_state(leaf for leaf in leaves if isinstance(leaf, Tensor))
                replay()
                self._compare(operation, func, saved, spec, active)
                proceed()
        else:
            result = run(func, args, kwargs)
        operation.places[self._places.here()] += 1
        return result

    def _cut(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        active = any(_is_active(leaf) for leaf in leaves)
        if func in READS and any(leaf is known for leaf in leaves for known in self._detached):
            self._note(func)  # x.detach().numpy() is a way of reading, which PyTorch asks for
        if func in READS:  # which refuse, or warn about, what has a graph
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        result = func(*args, **kwargs) if func in DETACHES or func in READS else run(*widened(func, args, kwargs))
        if active and (func in DETACHES or func in READS or _floating(result)):
            self._note(func)
            if func in DETACHES:
                self._detached.append(result)
        return result

    def _note(self, func: Any) -> None:
        how = readable(func) if func in DETACHES or func in READS else "torch.no_grad"
        self.cuts[how, self._places.here()] += 1

    def _compare(self, operation: Operation, func: Any, saved: list[Any], spec: Any, active: list[int]) -> None:
        writes = is_write(getattr(func, "__name__", ""))

        def function(*primals: Tensor) -> tuple[Tensor, ...]:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in saved]
            for i, primal in zip(active, primals, strict=True):
                leaves[i] = primal.clone()
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            result = run(func, args, kwargs)
            return tuple(_floating(args[0] if writes else result))

        primals = [saved[i] for i in active]
        operation.comparison, operation.verdicts = compare_twice(function, primals)


def compare_twice(function: Any, primals: list[Tensor]) -> tuple[Comparison | None, list[str]]:
    """Compare at a point and, where the ways differ, near it: only what is wrong at both is wrong.

    At a kink or at equal values (of a maximum, a median) each way may choose another of several derivatives.
    """
    if sum(primal.numel() for primal in primals) > LARGEST:
        return None, []
    try:
        first = compare(function, primals)
    except Exception:  # it ran in the model; what cannot be repeated by itself cannot be judged by itself
        return None, []
    verdicts = first.verdicts()
    if not verdicts:
        return first, []
    generator = torch.Generator().manual_seed(1)
    moved = [move(primal, generator, JITTER) for primal in primals]
    try:
        second = compare(function, moved)
    except Exception:  # outside of the function's domain
        return first, verdicts
    if second.checked == 0:
        return first, verdicts
    kept = [word for word in verdicts if word in second.verdicts()]
    return (second if kept else first), kept


def move(x: Tensor, generator: torch.Generator, size: float) -> Tensor:
    """Return a point nearby, at a distance of ``size`` relative to the typical size (at least 0.05) of ``x``."""
    scale = max(typical_size(x), 0.05)
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
    return x + size * scale * like_structured(noise, x)


def readable(func: Any) -> str:
    """Return the name of a function as a user would write it."""
    name = name_of(func)
    if getattr(func, "__module__", None) == "torch.nn.functional":
        return f"torch.nn.functional.{name}"
    if name.startswith(("linalg_", "fft_", "special_")):
        return "torch." + name.replace("_", ".", 1)
    return f"torch.{name}" if "." not in name and hasattr(torch, name) else name


def _is_active(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _floating(result: Any) -> list[Tensor]:
    return [
        leaf
        for leaf in pytree.tree_leaves(result)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return ("tensor", tuple(leaf.shape), leaf.dtype, leaf.requires_grad, leaf.stride())
    return repr(leaf) if isinstance(leaf, int | float | bool | str | None) else type(leaf).__name__
