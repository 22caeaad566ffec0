"""Descents from one start by several methods, side by side."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fwdgrad.estimators import Backprop, Estimator, ForwardGradient
from fwdgrad.global_optimization.config import GlobalOptimConfig
from fwdgrad.global_optimization.problem import Problem

BLOCKS = 100
WARM_UP = 20


class Point(nn.Module):
    """A point of the domain as a module with one parameter ``x``, which estimators and optimizers can take."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x.clone())


@dataclass(frozen=True)
class Run:
    """What one descent saw; the sequences have one entry for the start and one for each iteration."""

    method: str
    seed: int | None
    """Seed of the directions; None for a method without them."""
    values: Tensor
    """The function's value after i iterations, shape (n + 1,)."""
    seconds: Tensor
    """Time spent on the first i iterations, shape (n + 1,)."""
    path: Tensor | None
    """The points, shape (n + 1, 2), of a function of two variables; otherwise None."""
    final: Tensor
    """The last point, shape (d,)."""
    diverged: bool
    """Whether the value ceased to be finite: the entries then end with the last finite value."""

    @property
    def iterations(self) -> int:
        return len(self.values) - 1


class Descent:
    """SGD with a gradient from an estimator, on one function from one start.

    Only the iteration is timed (the estimate and the optimizer's step), not what is recorded of it.

    Args:
        method: its word in the results.
        estimator: any estimator; backpropagation is one.
        problem: function and start.
        learning_rate: of ``torch.optim.SGD``.
        seed: seed of the estimator's directions, None where it has none.
    """

    def __init__(
        self, method: str, estimator: Estimator, problem: Problem, learning_rate: float, seed: int | None = None
    ) -> None:
        self.method = method
        self.seed = seed
        self.diverged = False
        self._estimator = estimator
        self._function = problem.objective
        self._point = Point(problem.start)
        self._optimizer = torch.optim.SGD(self._point.parameters(), lr=learning_rate)
        self._values: list[float] = []
        self._seconds: list[float] = []
        self._points: list[Tensor] = []
        self._keeps_path = problem.dim == 2
        self._elapsed = 0.0

    def advance(self, iterations: int) -> None:
        """Do some more iterations, or fewer if the value ceases to be finite."""
        for _ in range(iterations):
            if self.diverged:
                return
            before = self._point.x.detach().clone()
            begin = time.perf_counter()
            self._optimizer.zero_grad()
            value = self._estimator(self._point, self._closure).item()
            self._optimizer.step()
            elapsed = time.perf_counter() - begin
            self._record(value, before)
            self._elapsed += elapsed

    def finish(self) -> Run:
        """Evaluate the function at the last point and return the whole descent."""
        if not self.diverged:
            with torch.no_grad():
                self._record(self._closure(self._point).item(), self._point.x.detach().clone())
        return Run(
            method=self.method,
            seed=self.seed,
            values=torch.tensor(self._values, dtype=torch.float64),
            seconds=torch.tensor(self._seconds, dtype=torch.float64),
            path=torch.stack(self._points) if self._keeps_path else None,
            final=self._points[-1],
            diverged=self.diverged,
        )

    def _closure(self, point: Point) -> Tensor:
        return self._function(point.x)

    def _record(self, value: float, x: Tensor) -> None:
        if not math.isfinite(value):
            self.diverged = True
            return
        self._values.append(value)
        self._seconds.append(self._elapsed)
        if not self._keeps_path:
            self._points.clear()
        self._points.append(x)


def compare(
    problem: Problem, config: GlobalOptimConfig, progress: Callable[[int], object] = lambda iterations: None
) -> list[Run]:
    """Descend by forward gradient, once for each seed, and once by backpropagation.

    The descents take turns, a hundredth of the iterations each, so that whatever slows the machine down slows all.

    Args:
        problem: function and start.
        config: the settings.
        progress: called with the number of iterations just done, over all descents.
    """
    # The first iterations pay for imports and caches: do them in descents that are thrown away.
    for descent in _descents(problem, config):
        descent.advance(min(WARM_UP, config.iterations))
    descents = _descents(problem, config)
    ends = [config.iterations * block // BLOCKS for block in range(BLOCKS + 1)]
    for begin, end in itertools.pairwise(ends):
        for descent in descents:
            descent.advance(end - begin)
            progress(end - begin)
    return [descent.finish() for descent in descents]


def check_config(config: GlobalOptimConfig) -> None:
    """Raise ValueError if a number is out of range, or if the direction or the engine is not known."""
    for key in ("iterations", "num_seeds"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key} must be at least 1, got {getattr(config, key)}")
    if not 0 < config.learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a positive number, got {config.learning_rate}")
    if config.direction == "per_example":
        raise ValueError("direction=per_example needs a batch of examples, and a point is none; choose another")
    _forward_gradient(config, config.seed)


def _descents(problem: Problem, config: GlobalOptimConfig) -> list[Descent]:
    rate = config.learning_rate
    descents = [
        Descent("forward_gradient", _forward_gradient(config, seed), problem, rate, seed)
        for seed in range(config.seed, config.seed + config.num_seeds)
    ]
    return [*descents, Descent("backprop", Backprop(), problem, rate)]


def _forward_gradient(config: GlobalOptimConfig, seed: int) -> ForwardGradient:
    return ForwardGradient(config.direction, config.num_directions, config.engine, seed=seed)
