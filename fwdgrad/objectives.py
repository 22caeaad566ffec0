"""Test functions of global optimisation, with what is known of their minima.

Each takes a point of shape (d,), or a batch of points (..., d), and returns a scalar, or a batch (...). All are written
with operations that have forward-mode and reverse-mode derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Pattern: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Objective:
    """A function to minimise, and what is known of it. Call it as the function itself.

    Coordinates are given as patterns, repeated as often as the dimension asks for: ``(1.0,)`` is the point of all ones,
    ``(-1.2, 1.0)`` is ``(-1.2, 1, -1.2, 1, ...)``.

    Args:
        function: maps points (..., d) to values (...).
        name: a word for tables and pictures.
        minimizers: patterns of the known global minimisers; none where they are not known.
        start: pattern of the usual start; none where there is no such.
        min_dim: least dimension.
        max_dim: largest dimension, None for any.
    """

    function: Callable[[Tensor], Tensor]
    name: str
    minimizers: tuple[Pattern, ...] = ()
    start: Pattern | None = None
    min_dim: int = 1
    max_dim: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() < 1:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{self.name} takes a tensor of shape (d,) or (..., d), got {got}")
        self.check_dim(x.shape[-1])
        return self.function(x)

    def check_dim(self, dim: int) -> None:
        """Raise ValueError unless the function exists in this dimension."""
        if self.min_dim <= dim and (self.max_dim is None or dim <= self.max_dim):
            return
        needs = f"at least {self.min_dim}" if self.max_dim is None else f"{self.max_dim}"
        raise ValueError(f"{self.name} needs dimension {needs}, got {dim}")

    def minimizer_points(self, dim: int) -> Tensor:
        """Return the known global minimisers as float64 points, shape (count, dim)."""
        self.check_dim(dim)
        return torch.tensor([repeat(pattern, dim) for pattern in self.minimizers], dtype=torch.float64).view(-1, dim)

    def minimum(self, dim: int) -> float | None:
        """Return the least value, that at the first known minimiser; None where no minimiser is known."""
        points = self.minimizer_points(dim)
        return self(points[0]).item() if len(points) else None


def repeat(pattern: Sequence[float], dim: int) -> list[float]:
    """Return the first ``dim`` entries of the pattern repeated without end."""
    return [float(pattern[i % len(pattern)]) for i in range(dim)]


def objective(
    *,
    minimizers: Sequence[Sequence[float]] = (),
    start: Sequence[float] | None = None,
    min_dim: int = 1,
    max_dim: int | None = None,
) -> Callable[[Callable[[Tensor], Tensor]], Objective]:
    """Decorate a function with what is known of it; the arguments are those of :class:`Objective`."""

    def decorate(function: Callable[[Tensor], Tensor]) -> Objective:
        patterns = tuple(tuple(pattern) for pattern in minimizers)
        known = Objective(function, function.__name__, patterns, tuple(start) if start else None, min_dim, max_dim)
        object.__setattr__(known, "__doc__", function.__doc__)
        return known

    return decorate


@objective(minimizers=[(3.0, 0.5)], start=(1.0, 1.0), min_dim=2, max_dim=2)
def beale(x: Tensor) -> Tensor:
    """Return ``(1.5 - a + ab)^2 + (2.25 - a + ab^2)^2 + (2.625 - a + ab^3)^2`` at the point (a, b).

    Minimum 0 at (3, 0.5), in a curved valley that flattens out towards large a.
    Source: Beale, "On an iterative method for finding a local minimum of a function of more than one variable", 1958.
    """
    a, b = x[..., 0], x[..., 1]
    return (1.5 - a + a * b).square() + (2.25 - a + a * b**2).square() + (2.625 - a + a * b**3).square()


@objective(minimizers=[(1.0,)], start=(-1.2, 1.0), min_dim=2)
def rosenbrock(x: Tensor) -> Tensor:
    """Return ``sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2``, in two or more dimensions.

    Minimum 0 at (1, ..., 1), at the end of a bent and nearly flat valley: there the curvatures of the plane function
    are 1002 and 0.4. The usual start is (-1.2, 1).
    Source: Rosenbrock, "An automatic method for finding the greatest or least value of a function", 1960.
    """
    here, following = x[..., :-1], x[..., 1:]
    return (100 * (following - here.square()).square() + (1 - here).square()).sum(-1)


@objective(
    minimizers=[
        (3.0, 2.0),
        (-2.805118086952745, 3.131312518250573),
        (-3.779310253377747, -3.283185991286170),
        (3.584428340330492, -1.848126526964404),
    ],
    start=(0.0, 0.0),
    min_dim=2,
    max_dim=2,
)
def himmelblau(x: Tensor) -> Tensor:
    """Return ``(a^2 + b - 11)^2 + (a + b^2 - 7)^2`` at the point (a, b).

    Minimum 0 at four points, (3, 2) among them.
    Source: Himmelblau, "Applied Nonlinear Programming", 1972.
    """
    a, b = x[..., 0], x[..., 1]
    return (a.square() + b - 11).square() + (a + b.square() - 7).square()


@objective(minimizers=[(0.0,)], start=(0.6, -0.4))
def ackley(x: Tensor) -> Tensor:
    """Return ``20 + e - 20 exp(-0.2 |x| / sqrt(d)) - exp(mean_i cos(2 pi x_i))``.

    Minimum 0 at the origin, which is the tip of a cone: the slope towards it does not vanish, so that steps of a fixed
    length circle around it. Its derivative there is 0 by convention. Local minima sit near all other integer points.
    Source: Ackley, "A Connectionist Machine for Genetic Hillclimbing", 1987.
    """
    radius = torch.linalg.vector_norm(x, dim=-1) / math.sqrt(x.shape[-1])
    return 20 * (1 - torch.exp(-0.2 * radius)) + (math.e - torch.exp(torch.cos(2 * math.pi * x).mean(-1)))


@objective(minimizers=[(0.0,)], start=(0.4, -0.3))
def rastrigin(x: Tensor) -> Tensor:
    """Return ``sum_i x_i^2 + 10 (1 - cos(2 pi x_i))``.

    Minimum 0 at the origin; local minima sit near all other integer points, and a descent stays in the basin of its
    start. Largest curvature 2 + 40 pi^2, about 397.
    Source: Rastrigin, "Systems of Extremal Control", 1974; in d dimensions Mühlenbein et al., 1991.
    """
    return (x.square() + 10 * (1 - torch.cos(2 * math.pi * x))).sum(-1)


@objective(minimizers=[(0.0,)], start=(2.0, -1.0))
def sphere(x: Tensor) -> Tensor:
    """Return ``sum_i x_i^2``; minimum 0 at the origin, curvature 2 everywhere."""
    return x.square().sum(-1)


@objective(minimizers=[(-2.903534027771177,)], start=(-0.5, -4.5))
def styblinski_tang(x: Tensor) -> Tensor:
    """Return ``sum_i (x_i^4 - 16 x_i^2 + 5 x_i) / 2``.

    Minimum -39.16616570377142 d where all x_i are -2.903534027771177; with d coordinates there are 2^d - 1 other
    minima, where some are 2.746803.
    Source: Styblinski and Tang, "Experiments in nonconvex optimization", Neural Networks 3, 1990.
    """
    return ((x.square() - 16) * x.square() + 5 * x).sum(-1) / 2


OBJECTIVES = {
    known.name: known for known in (beale, rosenbrock, himmelblau, ackley, rastrigin, sphere, styblinski_tang)
}
