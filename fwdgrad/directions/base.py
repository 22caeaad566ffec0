"""The interface of a direction, and the turning of a word or a callable into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense, PerExample, Tangent

Params: TypeAlias = Mapping[str, Tensor]


class Direction(Protocol):
    """A distribution of random tangents ``v`` with ``E[v v^T] = I``, unless its docstring declares another bias.

    One with an attribute ``separable = True`` draws for each parameter on its own what it draws for it among others.
    """

    def sample(self, params: Params, generator: KeyedGenerator) -> Mapping[str, Tangent]:
        """Draw the directions ``generator.indices``: for each parameter a tangent of K' vectors of its shape."""


SampleFunction: TypeAlias = Callable[[Params, KeyedGenerator], Mapping[str, Tangent | Tensor]]


class FromCallable:
    """A user's function ``fn(params, generator) -> {name: tensor of shape (K', *shape) or tangent}``, checked."""

    def __init__(self, fn: SampleFunction) -> None:
        self.fn = fn

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Tangent]:
        drawn = self.fn(params, generator)
        if not isinstance(drawn, Mapping):
            raise TypeError(
                f"direction {_name_of(self.fn)} must return a dict of name -> tensor, got {type(drawn).__name__}"
            )
        check_names(drawn, params)
        tangents = {name: Dense(value) if isinstance(value, Tensor) else value for name, value in drawn.items()}
        for name, tangent in tangents.items():
            check_tangent(name, tangent, params[name], len(generator.indices))
        return tangents


def check_names(drawn: Mapping[str, object], params: Params) -> None:
    """Raise ValueError unless a direction was drawn for exactly the parameters."""
    missing = [name for name in params if name not in drawn]
    unknown = [name for name in drawn if name not in params]
    if missing or unknown:
        raise ValueError(
            f"a direction must have one tangent per trainable parameter; missing {missing}, unknown {unknown}"
        )


def check_tangent(name: str, tangent: Tangent, param: Tensor, num_directions: int) -> None:
    """Raise ValueError unless the tangent holds ``num_directions`` vectors of the parameter's shape and dtype."""
    expected = (num_directions, *param.shape)
    arrived = (tangent.num_directions, *tangent.shape)
    if arrived != expected:
        raise ValueError(f"tangent {name!r} must have shape {expected} (directions, *parameter), got {arrived}")
    if isinstance(tangent, Dense) and tangent.values.dtype != param.dtype:
        raise ValueError(f"tangent {name!r} must have dtype {param.dtype}, got {tangent.values.dtype}")


def is_per_example(tangents: Mapping[str, Tangent]) -> bool:
    """Say whether the tangents differ from example to example."""
    return any(isinstance(tangent, PerExample) for tangent in tangents.values())


def _name_of(fn: object) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def real_or_raise(name: str, param: Tensor) -> Tensor:
    """Return the parameter, or raise TypeError if it is not of a real floating-point dtype."""
    if not torch.is_floating_point(param):
        raise TypeError(
            f"parameter {name!r} must be of a real floating-point dtype to be given a direction, got {param.dtype}; "
            "set requires_grad=False on it, or split it into real parts"
        )
    return param
