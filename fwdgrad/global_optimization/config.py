"""The typed shape of ``configs/global_optim.yaml``; ``"???"`` must come from a file or from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"


@dataclass
class FunctionConfig:
    """What is minimised, and from where."""

    path: str = ""
    """Importable callable that maps a point (d,) to a scalar, such as ``fwdgrad.objectives.beale``."""
    dim: int | None = None
    """Dimension d; by default the length of ``start``, or 2."""
    start: list[float] | None = None
    """The start, or a pattern that is repeated up to the dimension; by default the function's usual start."""


@dataclass
class GlobalOptimConfig:
    """A comparison of forward gradient and backpropagation on one function."""

    function: FunctionConfig = field(default_factory=FunctionConfig)
    learning_rate: float = MISSING
    iterations: int = MISSING
    target: float | None = None
    seed: int = 0
    num_seeds: int = 5
    direction: str = "normal"
    num_directions: int = 1
    engine: str = "dual"
    name: str = MISSING
