"""Modules by themselves: each is differentiated in all ways on the inputs that it really got."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fwdgrad.model_check.compare import Comparison
from fwdgrad.model_check.double import Double
from fwdgrad.model_check.operations import _floating, compare_twice

Calls = dict[nn.Module, tuple[Any, Any]]


def leaves_of(calls: Calls) -> list[nn.Module]:
    """Return the called modules that have no module inside, one of each kind: type, settings and shapes of inputs."""
    kinds: dict[Any, nn.Module] = {}
    for module, arguments in calls.items():
        if next(module.children(), None) is None:
            shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(arguments)]
            grads = [p.requires_grad for p in module.parameters()]
            kinds.setdefault((type(module), module.extra_repr(), str(shapes), str(grads), module.training), module)
    return list(kinds.values())


def compare_module(module: nn.Module, arguments: tuple[Any, Any]) -> tuple[Comparison | None, list[str]]:
    """Compare the derivatives of a module's outputs by its trainable parameters and by its inputs."""
    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    leaves, spec = pytree.tree_flatten(arguments)
    active = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not params and not active:
        return None, []
    buffers = dict(module.named_buffers())

    def function(*primals: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(params, primals[: len(params)], strict=True))
        given = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for i, primal in zip(active, primals[len(params) :], strict=True):
            given[i] = primal.clone()  # for modules that write to their input
        args, kwargs = pytree.tree_unflatten(given, spec)
        with Double():
            held = {name: buffer.clone() for name, buffer in buffers.items()}
            return tuple(_floating(torch.func.functional_call(module, {**state, **held}, args, kwargs)))

    return compare_twice(function, [*params.values(), *(leaves[i].detach() for i in active)])


def innermost(modules: Iterable[nn.Module], calls: Calls, verdict: str) -> dict[nn.Module, Comparison]:
    """Return the modules to which a verdict applies, but to none of the modules inside them."""
    found: dict[nn.Module, Comparison] = {}
    for module in reversed(list(modules)):  # a module comes after those that contain it
        if module not in calls or any(inner in found for inner in module.modules()):
            continue
        comparison, verdicts = compare_module(module, calls[module])
        if comparison is not None and verdict in verdicts:
            found[module] = comparison
    return found
