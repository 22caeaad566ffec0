"""What a forward pass leaves behind, and whether it gives the same value again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass
class Run:
    """What each module got and returned in one forward pass, at its first call."""

    calls: dict[nn.Module, Any] = field(default_factory=dict)
    outputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)


def differing(first: Run, second: Run) -> list[nn.Module]:
    """Return the modules that got the same in both runs and returned something else, inner ones first."""
    return [
        module
        for module, output in first.outputs.items()
        if not _equal(output, second.outputs.get(module))
        and _equal(_tensors(first.calls[module]), _tensors(second.calls.get(module)))
    ]


def _tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]


def _equal(a: list[Tensor], b: list[Tensor] | None) -> bool:
    return b is not None and len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


_OWN = set(vars(nn.Module()))
_DEPTH = 3


@contextmanager
def untouched_randomness(model: nn.Module) -> Iterator[None]:
    """Restore the global random states of PyTorch, NumPy and Python after the block."""
    devices = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.is_cuda})
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(others[0])
    np.random.set_state(others[1])


def other_randomness() -> tuple[Any, Any]:
    """Return the states of Python's and NumPy's global generators, in a form that can be compared."""
    name, keys, position, *rest = np.random.get_state()
    return random.getstate(), (name, tuple(keys), position, *rest)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return the attributes of all modules that are neither parameters nor buffers nor modules, in comparable form."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _OWN:
                found[f"{name}.{key}" if name else key] = _comparable(value, _DEPTH)
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of the attributes that differ."""
    return [name for name in sorted({*before, *after}) if before.get(name, _MISSING) != after.get(name, _MISSING)]


_MISSING = object()


def _comparable(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta:
            return ("tensor", tuple(value.shape))
        plain = value.detach().cpu().resolve_conj().contiguous().flatten()
        return ("tensor", tuple(value.shape), str(value.dtype), hash(plain.view(torch.uint8).numpy().tobytes()))
    if isinstance(value, np.ndarray):
        return ("array", value.shape, hash(value.tobytes()))
    if isinstance(value, int | float | complex | str | bytes | bool | None):
        return value if value == value else "nan"
    if depth and isinstance(value, dict):
        return {str(key): _comparable(entry, depth - 1) for key, entry in value.items()}
    if depth and isinstance(value, list | tuple | set):
        return [type(value).__name__, *(_comparable(entry, depth - 1) for entry in value)]
    return ("object", type(value).__name__)
