"""What is minimised and from where, read from a configuration and tried once."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fwdgrad.global_optimization.config import FunctionConfig
from fwdgrad.objectives import Objective, repeat


@dataclass(frozen=True)
class Problem:
    """A function, and the point that every descent starts from."""

    objective: Objective
    start: Tensor

    @property
    def dim(self) -> int:
        return self.start.numel()

    @property
    def minimum(self) -> float | None:
        """The least value of the function, None where it is not known."""
        return self.objective.minimum(self.dim)

    def distance(self, x: Tensor) -> float | None:
        """Return the Euclidean distance to the nearest known minimiser, None where none is known."""
        minimizers = self.objective.minimizer_points(self.dim)
        return (minimizers - x).norm(dim=1).min().item() if len(minimizers) else None


def make_problem(config: FunctionConfig) -> Problem:
    """Import the function and make the start, in double precision.

    Raises:
        ImportError: if there is nothing of that name.
        ValueError: if the start does not fit, or the function cannot be minimised from it.
        TypeError: if it is not a function from a point to a scalar tensor.
    """
    objective = load_objective(config.path)
    pattern = config.start if config.start is not None else objective.start
    if not pattern:
        raise ValueError(f"function.start must be given for {objective.name}, for instance function.start=[0.5,-1]")
    if config.dim is not None and config.dim < 1:
        raise ValueError(f"function.dim must be at least 1, got {config.dim}")
    dim = config.dim or (len(pattern) if config.start is not None else max(2, len(pattern)))
    if len(pattern) > dim and config.start is not None:
        raise ValueError(f"function.start has {len(pattern)} entries, more than function.dim={dim}")
    objective.check_dim(dim)
    start = torch.tensor(repeat(pattern, dim), dtype=torch.float64)
    check_objective(objective, start)
    return Problem(objective, start)


def load_objective(path: str) -> Objective:
    """Import ``package.module.function``; modules in the current folder can be imported as well."""
    module_name, _, name = path.rpartition(".")
    if not (module_name and name):
        raise ImportError(f"function.path must read module.function, such as fwdgrad.objectives.beale; got {path!r}")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"function.path={path} cannot be imported: {error}") from error
    if isinstance(function, Objective):
        return function
    if not callable(function):
        raise TypeError(f"function.path={path} must be a function, got {type(function).__name__}")
    return Objective(function, name)


def check_objective(function: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """Raise ValueError or TypeError unless the function is a finite, differentiable scalar at the start."""
    name = getattr(function, "name", repr(function))
    at = f"at the start {point_text(start)}"
    try:
        value = function(start.clone().requires_grad_())
    except Exception as error:
        raise ValueError(f"{name} fails {at}: {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must return a floating-point tensor, got {got}")
    if value.dim() != 0:
        raise ValueError(
            f"{name} must return a scalar for a point of shape {tuple(start.shape)}, got shape {tuple(value.shape)}"
        )
    if not math.isfinite(value.item()):
        raise ValueError(f"{name} must be finite {at}, got {value.item()}; choose another function.start")
    if not value.requires_grad:
        raise ValueError(f"{name} has no derivative {at}: its value does not depend on the point through torch")


def point_text(x: Tensor, most: int = 4) -> str:
    """Return a point as text, with the first ``most`` coordinates."""
    shown = ", ".join(f"{value:.4g}" for value in x[:most].tolist())
    return f"({shown}, ...)" if x.numel() > most else f"({shown})"
