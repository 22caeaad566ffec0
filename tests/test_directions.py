"""Every direction has E[v v^T] = I and the second moment that its docstring states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from samples import PARAMS, flatten, per_example_vectors, random
from torch import Tensor

from fwdgrad.directions import (
    DIRECTIONS,
    Coordinate,
    Direction,
    LowRank,
    Normal,
    Orthogonal,
    PerExample,
    Rademacher,
    Sparse,
)
from fwdgrad.randomness import KeyedGenerator

COUNT = sum(param.numel() for param in PARAMS.values())
GRADIENT = random(COUNT, seed=1)
SHARED = {name: make for name, make in DIRECTIONS.items() if name != "per_example"}
every_shared = pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)


class AllSigns:
    """Stands in for a ``KeyedGenerator``: as its directions, every pattern of signs exactly once."""

    def __init__(self, total: int) -> None:
        self.indices = range(2**total)
        self._patterns = 1 - 2 * (torch.arange(2**total).unsqueeze(1) >> torch.arange(total) & 1).double()
        self._used = 0

    def signs(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        self._used += count
        return self._patterns[:, self._used - count : self._used]

    def all_signs(self, counts: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return {name: self.signs(name, count, dtype, device) for name, count in counts.items()}

    def check_all_used(self) -> None:
        assert self._used == self._patterns.shape[1]


def vectors(direction: Direction, params: Mapping[str, Tensor], generator: KeyedGenerator | AllSigns) -> Tensor:
    """Return the directions as rows (K, P)."""
    drawn = direction.sample(params, generator)
    return flatten({name: drawn[name].materialize() for name in params}, lead=1)


def assert_identity(rows: Tensor, tolerance: float) -> None:
    """Assert that the mean of v v^T over the rows is the identity, entry by entry."""
    assert (rows.T @ rows / len(rows) - torch.eye(rows.shape[1])).abs().max() <= tolerance


@every_shared
def test_identity_covariance(make: Callable[[], Direction]) -> None:
    # No product of two entries has a variance above 2, that of the square of a normal, but for a sparse entry's square.
    variance = 1 / 0.1 - 1 if make is Sparse else 2
    assert_identity(vectors(make(), PARAMS, KeyedGenerator(0, 0, range(4096))), 6 * math.sqrt(variance / 4096))


@every_shared
def test_a_direction_scaled_by_a_tenth_fails_the_test_of_covariance(make: Callable[[], Direction]) -> None:
    with pytest.raises(AssertionError):
        assert_identity(1.1 * vectors(make(), PARAMS, KeyedGenerator(0, 0, range(4096))), 6 * math.sqrt(2 / 4096))


@every_shared
def test_the_vectors_of_one_step_and_those_of_many_steps_have_the_same_covariance(
    make: Callable[[], Direction],
) -> None:
    steps = torch.cat([vectors(make(), PARAMS, KeyedGenerator(0, step)) for step in range(2048)])
    # One coordinate, alone in its step, has the square P with probability 1/P.
    variance = {Sparse: 1 / 0.1 - 1, Coordinate: COUNT - 1}.get(make, 2)
    assert_identity(steps, 6 * math.sqrt(variance / 2048))


def estimates_second_moment(rows: Tensor, gradient: Tensor) -> Tensor:
    return ((rows @ gradient).square() * rows.square().sum(1)).mean()


EXACT: dict[str, tuple[Direction, dict[str, Tensor], int, float]] = {
    "rademacher": (Rademacher(), {"w": random(2, 3), "b": random(2)}, 8, 0.0),
    "rank 1": (LowRank(), {"w": random(3, 4)}, 7, 0.0),
    "rank 1 of a convolution": (LowRank(), {"w": random(3, 1, 2, 2)}, 7, 0.0),
    "rank 1 beside dense": (LowRank(), {"w": random(3, 3), "b": random(3), "small": random(2, 2)}, 13, 0.0),
    "rank 2": (LowRank(rank=2), {"w": random(4, 5)}, 18, 1.0),
    "rank 2 beside dense": (LowRank(rank=2), {"b": random(1), "w": random(4, 5)}, 19, 1.0),
}


@pytest.mark.parametrize(("direction", "params", "signs", "excess"), EXACT.values(), ids=EXACT)
def test_over_all_patterns_of_signs_covariance_and_second_moment_are_exact(
    direction: Direction, params: dict[str, Tensor], signs: int, excess: float
) -> None:
    generator = AllSigns(signs)
    rows = vectors(direction, params, generator)
    generator.check_all_used()
    assert_identity(rows, 1e-12)
    gradients = {name: random(*param.shape, seed=2) for name, param in params.items()}
    gradient, factored = flatten(gradients), gradients.get("w", torch.zeros(1))
    expected = len(gradient) * gradient.square().sum() + excess * factored.square().sum()
    torch.testing.assert_close(estimates_second_moment(rows, gradient), expected)


def test_the_excess_of_rank_r_is_twice_one_minus_its_inverse() -> None:
    w = {"w": random(4, 5)}
    measured = []
    for rank in (1, 2):
        rows = vectors(LowRank(rank), w, AllSigns(9 * rank))
        gradient = random(20, seed=2)
        measured.append(estimates_second_moment(rows, gradient) / gradient.square().sum() - 20)
    torch.testing.assert_close(torch.stack(measured), torch.tensor([0.0, 2 * (1 - 1 / 2)], dtype=torch.float64))


def test_the_second_moment_of_normals_is_p_plus_two() -> None:
    rows, p, n = vectors(Normal(), PARAMS, KeyedGenerator(0, 0, range(16384))), COUNT, 16384
    # X = z^2 (z^2 + S) with z normal and S chi-squared with P - 1 degrees of freedom, in units of |g|^2.
    square = 105 + 30 * (p - 1) + 3 * (p - 1) * (p + 1)
    deviation = math.sqrt((square - (p + 2) ** 2) / n)
    measured = estimates_second_moment(rows, GRADIENT) / GRADIENT.square().sum()
    assert abs(measured - (p + 2)) <= 6 * deviation
    with pytest.raises(AssertionError):
        assert abs(1.1**4 * measured - (p + 2)) <= 6 * deviation


def test_the_second_moment_of_sparse_entries_is_p_minus_one_plus_the_inverse_of_the_probability() -> None:
    # Over all patterns: each of four entries is +, -, or 0, with the probabilities p/2, p/2 and 1 - p.
    p, gradient = 0.3, random(4, seed=1)
    patterns = torch.cartesian_prod(*[torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)] * 4)
    probabilities = torch.where(patterns == 0, 1 - p, p / 2).prod(1)
    rows = patterns / math.sqrt(p)
    second_moment = (probabilities * (rows @ gradient).square() * rows.square().sum(1)).sum()
    torch.testing.assert_close(second_moment, (4 - 1 + 1 / p) * gradient.square().sum())
    drawn = vectors(Sparse(p), {"w": random(4)}, KeyedGenerator(0, 0, range(8192)))
    for value, probability in ((1, p / 2), (-1, p / 2), (0, 1 - p)):
        share = ((drawn * math.sqrt(p) - value).abs() < 1e-12).double().mean()
        assert abs(share - probability) <= 6 * math.sqrt(probability * (1 - probability) / drawn.numel())


ORTHOGONAL = {"coordinate": Coordinate, "orthogonal": Orthogonal}
every_orthogonal = pytest.mark.parametrize("make", ORTHOGONAL.values(), ids=ORTHOGONAL)


@every_orthogonal
@pytest.mark.parametrize("count", [1, 7, COUNT])
def test_vectors_of_a_set_are_orthogonal_and_have_the_norm_sqrt_p(make: Callable[[], Direction], count: int) -> None:
    rows = vectors(make(), PARAMS, KeyedGenerator(0, 3, range(count)))
    torch.testing.assert_close(rows @ rows.T, COUNT * torch.eye(count, dtype=torch.float64))
    # Then the mean of (g.v) v over K = P vectors is g, and |its mean over K|^2 is P/K |projection of g|^2.
    if count == COUNT:
        torch.testing.assert_close((rows @ GRADIENT) @ rows / count, GRADIENT)


@every_orthogonal
def test_after_p_vectors_another_set_begins(make: Callable[[], Direction]) -> None:
    rows = vectors(make(), PARAMS, KeyedGenerator(0, 0, range(COUNT - 2, 2 * COUNT)))
    torch.testing.assert_close(rows[2:].T @ rows[2:] / COUNT, torch.eye(COUNT, dtype=torch.float64))
    assert (rows[:2] @ rows[2:].T).abs().max() > 1


@every_orthogonal
def test_the_second_moment_of_a_mean_of_k_is_p_over_k(make: Callable[[], Direction]) -> None:
    # |estimate|^2 = (P/K)^2 |projection|^2, and P/K |projection|^2 / |g|^2 has the mean 1 and lies in [0, P/K].
    p, k, n = COUNT, 5, 1024
    ratios = []
    for step in range(n):
        rows = vectors(make(), PARAMS, KeyedGenerator(0, step, range(k)))
        ratios.append(((rows @ GRADIENT) @ rows / k).square().sum() / GRADIENT.square().sum())
    measured = torch.stack(ratios)
    deviation = measured.std() / math.sqrt(n)
    assert abs(measured.mean() - p / k) <= 5 * deviation
    assert abs(measured.mean() - (p + k - 1) / k) > 5 * deviation


@pytest.mark.parametrize("name", ["rademacher", "sphere", "low_rank", "coordinate", "orthogonal"])
def test_every_vector_has_the_norm_sqrt_p(name: str) -> None:
    # Then |(g.v) v|^2 = P (g.v)^2, and E[v v^T] = I gives the second moment P |g|^2.
    rows = vectors(DIRECTIONS[name](), PARAMS, KeyedGenerator(0, 0, range(100)))
    torch.testing.assert_close(rows.square().sum(1), torch.full((100,), float(COUNT), dtype=torch.float64))


def test_per_example_covariance_and_second_moment_are_exact_over_all_patterns_of_signs() -> None:
    batch, params = 2, {"w": random(2, 3), "b": random(2)}
    generator = AllSigns(batch * (2 + 3 + 2))
    rows = per_example_vectors(PerExample().sample(params, generator), batch)
    generator.check_all_used()
    for b in range(batch):
        assert_identity(rows[:, b], 1e-12)
    assert (rows[:, 0].T @ rows[:, 1] / len(rows)).abs().max() < 1e-12
    gradients = random(batch, 8, seed=2)
    estimates = torch.einsum("kb,kbp->kp", torch.einsum("kbp,bp->kb", rows, gradients), rows) / batch
    mean = gradients.mean(0)
    torch.testing.assert_close(estimates.mean(0), mean)
    expected = mean.square().sum() + (8 - 1) / batch * gradients.square().sum(1).mean()
    torch.testing.assert_close(estimates.square().sum(1).mean(), expected)


def test_per_example_vectors_of_keyed_signs_have_identity_covariance_and_are_independent() -> None:
    params = {name: PARAMS[name] for name in ("w", "small", "b", "s")}
    rows = per_example_vectors(PerExample().sample(params, KeyedGenerator(0, 0, range(2048))), 2)
    assert_identity(rows.flatten(1), 6 * math.sqrt(2 / 2048))
