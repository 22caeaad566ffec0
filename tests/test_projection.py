"""The projection of the gradient onto K directions: what it is, its scale, and what it does where V^T V is singular."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import samples
import torch
from samples import assert_same, exact_gradient, flatten, gradients, random, trainable, unflatten
from torch import Tensor

from fwdgrad import ForwardGradient, forward_gradient
from fwdgrad.directions import make_direction
from fwdgrad.engines import ENGINES
from fwdgrad.estimators.projection import projection_coefficients
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense

COUNT = 6
GRADIENT = random(COUNT, seed=1)


def rows_as_directions(rows: Tensor) -> Callable[..., dict[str, Tensor]]:
    """Return the direction whose k-th vector is the k-th row."""
    return lambda params, generator: unflatten(rows[list(generator.indices)], params)


def project(rows: Tensor, gradient: Tensor = GRADIENT) -> Tensor:
    """Return the estimate from directions given as rows."""
    return projection_coefficients(rows @ gradient, {"w": Dense(rows)}) @ rows


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", ["normal", "rademacher", "low_rank", "low_rank:2", "orthogonal"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_it_is_the_nearest_combination_of_the_directions_times_p_over_k(
    engine: str, direction: str, chunk_size: int | None
) -> None:
    model, closure = samples.mlp()
    exact = flatten(exact_gradient(model, closure))
    params = {name: param.detach() for name, param in trainable(model).items()}
    ForwardGradient(direction, 5, engine, chunk_size, seed=2, aggregation="projection")(model, closure)
    drawn = make_direction(direction).sample(params, KeyedGenerator(2, 0, range(5)))
    rows = flatten({name: drawn[name].materialize() for name in params}, lead=1)
    nearest = rows.T @ torch.linalg.lstsq(rows.T, exact.unsqueeze(1)).solution.squeeze(1)
    tolerance = 1e-5 if engine == "finite_difference" else 1e-10
    estimate = flatten(gradients(model))
    torch.testing.assert_close(estimate, len(exact) / 5 * nearest, rtol=tolerance, atol=tolerance)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(estimate, 1.001 * len(exact) / 5 * nearest, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("direction", ["normal", "sphere", "orthogonal", "coordinate"])
@pytest.mark.parametrize("more", [0, 4])
def test_as_many_directions_as_parameters_give_the_exact_gradient(direction: str, more: int) -> None:
    model, closure = samples.mlp()
    exact = exact_gradient(model, closure)
    estimator = ForwardGradient(direction, len(flatten(exact)) + more, chunk_size=7, aggregation="projection")
    estimator(model, closure)
    assert_same(gradients(model), exact, 1e-8)
    with pytest.raises(AssertionError):
        assert_same(gradients(model), {name: 1.001 * value for name, value in exact.items()}, 1e-8)


def test_directions_of_very_different_lengths_count_alike() -> None:
    rows = random(COUNT, COUNT) * torch.logspace(-6, 6, COUNT, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(project(rows), GRADIENT, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_that_depend_on_each_other_count_once(dtype: torch.dtype) -> None:
    rows = random(3, 1000).to(dtype)
    gradient = random(1000, seed=1).to(dtype)
    dependent = torch.cat([rows, rows[:1], rows[1:2] - 2 * rows[2:], 0 * rows[:1]])
    expected = project(rows, gradient)
    torch.testing.assert_close(project(dependent, gradient), expected, rtol=1e-3, atol=1e-4)
    assert (expected / 3 * 6 - project(dependent, gradient)).norm() > 0.1 * expected.norm()


def test_without_any_direction_the_estimate_is_zero() -> None:
    assert torch.equal(project(torch.zeros(3, COUNT, dtype=torch.float64)), torch.zeros(COUNT, dtype=torch.float64))


def test_a_derivative_that_is_not_finite_leaves_its_direction_out() -> None:
    rows = random(4, COUNT)
    derivatives = rows @ GRADIENT
    derivatives[1] = torch.inf
    derivatives[2] = torch.nan
    alpha = projection_coefficients(derivatives, {"w": Dense(rows)})
    torch.testing.assert_close(alpha @ rows, project(rows[[0, 3]]))
    assert alpha[1] == alpha[2] == 0


def patterns(count: int) -> Tensor:
    """Return every pattern of signs, (2^count, count)."""
    return 1 - 2 * (torch.arange(2**count).unsqueeze(1) >> torch.arange(count) & 1).double()


def test_over_all_pairs_of_signs_the_mean_is_the_gradient_exactly() -> None:
    # Two vectors of three signs are equal or opposite in a quarter of all cases: then the rank is 1.
    gradient, pairs = random(3, seed=1), patterns(6).view(-1, 2, 3)
    estimates = torch.stack([project(rows, gradient) for rows in pairs])
    torch.testing.assert_close(estimates.mean(0), gradient)
    # The factor P/K in the place of P/rank would be wrong.
    ranks = torch.stack([torch.linalg.matrix_rank(rows) for rows in pairs])
    assert sorted(ranks.unique().tolist()) == [1, 2]
    with pytest.raises(AssertionError):
        torch.testing.assert_close((estimates * ranks.unsqueeze(1) / 2).mean(0), gradient)


def test_the_second_moment_is_p_over_k_and_below_that_of_the_mean() -> None:
    p, k, n = COUNT, 3, 2048
    rows = random(n, k, p)
    squares = torch.stack([project(each).square().sum() for each in rows]) / GRADIENT.square().sum()
    deviation = squares.std() / math.sqrt(n)
    assert abs(squares.mean() - p / k) <= 5 * deviation
    assert abs(squares.mean() - (p + k + 1) / k) > 5 * deviation


def test_of_rank_one_signs_parameters_get_unequal_shares_that_sum_to_the_rank() -> None:
    # v = (a c^T, b): 4 signs for the weight of shape (2, 2), which is given factors here, and one for b.
    signs = patterns(5)
    vectors = torch.cat([(signs[:, :2].unsqueeze(2) * signs[:, 2:4].unsqueeze(1)).flatten(1), signs[:, 4:]], 1)
    distinct = vectors[vectors[:, 0] > 0].unique(dim=0)
    pairs = [torch.stack([a, b]) for a in distinct for b in distinct if not torch.equal(a, b)]
    mean = torch.stack([rows.T @ torch.linalg.pinv(rows.T) for rows in pairs]).mean(0)
    torch.testing.assert_close(mean.trace(), torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(mean, torch.diag(mean.diagonal()))
    torch.testing.assert_close(mean.diagonal()[:4], mean[0, 0].expand(4))
    assert abs(mean[4, 4] / mean[0, 0] - 1) > 0.01


def test_the_pure_form_projects_too() -> None:
    point = {"w": random(2, 3), "b": random()}
    function = lambda p: (p["w"].sum() * p["b"]).square()  # noqa: E731
    estimate = forward_gradient(function, point, num_directions=7, aggregation="projection")
    inner = 2 * point["w"].sum() * point["b"]
    exact = {"w": (inner * point["b"]).expand(2, 3), "b": inner * point["w"].sum()}
    assert_same(estimate.gradient, exact, 1e-8)


def test_what_cannot_be_projected_is_refused() -> None:
    model, closure = samples.mlp()
    with pytest.raises(TypeError, match="one Gram matrix per example; use aggregation='mean'"):
        ForwardGradient("per_example", engine="dual", aggregation="projection")(model, closure)
    with pytest.raises(ValueError, match=r"aggregation must be one of \['mean', 'projection'\], got 'projecton'. Did"):
        ForwardGradient(aggregation="projecton")
