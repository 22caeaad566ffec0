"""A guess of the gradient leaves the estimate unbiased and takes its own part out of the variance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import samples
import torch
from samples import assert_same, exact_gradient, flatten, gradients, random, unflatten, weights
from torch import Tensor

from fwdgrad import ForwardGradient, forward_gradient
from fwdgrad.estimators.control_variates import Momentum, make_control_variate
from fwdgrad.optim import FactoredSGD

POINT = {"w": random(3, 4), "b": random(3, seed=1)}
COUNT = 15


def loss(params: Any) -> Tensor:
    return (params["w"].square().sum(1) * params["b"]).sum() + params["b"].square().sum()


GRADIENT = {"w": 2 * POINT["w"] * POINT["b"].unsqueeze(1), "b": POINT["w"].square().sum(1) + 2 * POINT["b"]}


def guess_at(distance: float) -> dict[str, Tensor]:
    """Return a guess at ``distance |g|`` from the gradient."""
    noise = random(COUNT, seed=5)
    noise *= distance * flatten(GRADIENT).norm() / noise.norm()
    return {name: value[0] for name, value in unflatten((flatten(GRADIENT) + noise).unsqueeze(0), POINT).items()}


def estimates(num: int, guess: dict[str, Tensor] | None) -> Tensor:
    variate = None if guess is None else lambda params: guess
    return torch.stack(
        [
            flatten(forward_gradient(loss, POINT, step=step, control_variate=variate).gradient)  # type: ignore[arg-type]
            for step in range(num)
        ]
    )


def test_the_true_gradient_as_guess_is_returned_exactly() -> None:
    for aggregation in ("mean", "projection"):
        estimate = forward_gradient(loss, POINT, control_variate=lambda p: GRADIENT, aggregation=aggregation)
        assert_same(estimate.gradient, GRADIENT, 1e-10)


@pytest.mark.parametrize("distance", [0.3, 1.0])
def test_the_mean_is_the_gradient_and_the_variance_is_that_of_the_difference(distance: float) -> None:
    n, gradient = 2048, flatten(GRADIENT)
    rows = estimates(n, guess_at(distance))
    # E|estimate - g|^2 = (P + 1) |g - c|^2 for normals.
    variance = (COUNT + 1) * (distance * gradient.norm()) ** 2
    assert (rows.mean(0) - gradient).norm() <= 6 * (variance / n).sqrt()
    squares = (rows - gradient).square().sum(1)
    assert abs(squares.mean() - variance) <= 5 * squares.std() / math.sqrt(n)
    assert abs(squares.mean() - 1.5 * variance) > 5 * squares.std() / math.sqrt(n)


def test_a_guess_that_is_added_but_not_taken_out_of_the_derivative_is_biased() -> None:
    n, guess = 2048, guess_at(0.3)
    biased = estimates(n, None) + flatten(guess)
    gradient = flatten(GRADIENT)
    variance = (COUNT + 1) * gradient.square().sum()
    assert (estimates(n, None).mean(0) - gradient).norm() <= 6 * (variance / n).sqrt()
    assert (biased.mean(0) - gradient).norm() > 6 * (variance / n).sqrt()


def test_the_average_of_past_estimates_learns_a_gradient_that_stands_still() -> None:
    """``E|c - g|^2`` shrinks by ``1 - 1/M`` each step, M = 1 + (P + 1)/K."""
    gradient, k = flatten(GRADIENT), 4
    variate = Momentum()
    errors = []
    for step in range(60):
        errors.append((flatten(variate.guess(POINT, k)) if step else torch.zeros(COUNT)) - gradient)
        forward_gradient(loss, POINT, num_directions=k, step=step, control_variate=variate)
    ratio = errors[-1].norm() / errors[0].norm()
    expected = (1 - k / (COUNT + k + 1)) ** (59 / 2)
    assert expected / 30 < ratio < 30 * expected < 1


def test_an_average_that_forgets_too_fast_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"decay must be above 0.88235294 for .* 1 directions in 15 .*, got 0.8; leave"
    ):
        forward_gradient(loss, POINT, control_variate="momentum:0.8")
    forward_gradient(loss, POINT, control_variate="momentum:0.89")
    # As the formula says, the error then grows: simulated here without the check.
    errors, c = [], torch.zeros(COUNT, dtype=torch.float64)
    gradient = flatten(GRADIENT)
    for step in range(400):
        v = random(COUNT, seed=step)
        c = c + 0.5 * ((gradient - c) @ v) * v
        errors.append((c - gradient).norm())
    assert errors[-1] > 100 * errors[0]


@pytest.mark.parametrize("direction", ["low_rank", "per_example"])
def test_an_optimizer_that_takes_factors_applies_the_same_estimate(direction: str) -> None:
    results = []
    for factored in (False, True):
        model, closure = samples.mlp()
        kind = FactoredSGD if factored else torch.optim.SGD
        optimizer = kind(model.parameters(), lr=0.05)
        estimator = ForwardGradient(direction, 3, "dual", optimizer=optimizer, control_variate="momentum")
        for _ in range(4):
            optimizer.zero_grad()
            estimator(model, closure)
            optimizer.step()
        results.append(weights(model))
    assert_same(results[0], results[1])


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_what_is_learnt_does_not_depend_on_the_chunks(chunk_size: int) -> None:
    states = []
    for size in (None, chunk_size):
        model, closure = samples.mlp()
        estimator = ForwardGradient("low_rank", 3, "dual", size, control_variate="momentum")
        for _ in range(3):
            estimator(model, closure)
        states.append(estimator.state_dict()["control_variate"])
    assert_same(states[1], states[0])
    assert flatten(states[0]).norm() > 0


def test_per_example_directions_with_a_guess_are_unbiased() -> None:
    model, closure = samples.linear()
    exact = flatten(exact_gradient(model, closure))
    guess = {name: value + 0.1 for name, value in exact_gradient(model, closure).items()}
    estimator = ForwardGradient("per_example", 4, "dual", control_variate=lambda params: guess)
    n, rows = 512, []
    for _ in range(n):
        model.zero_grad()
        estimator(model, closure)
        rows.append(flatten(gradients(model)))
    stacked = torch.stack(rows)
    deviation = (stacked.var(0).sum() / n).sqrt()
    assert (stacked.mean(0) - exact).norm() <= 5 * deviation
    assert (stacked.mean(0) - exact - 0.1).norm() > 5 * deviation


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "word": ("momentun", ValueError, "control_variate must be one of .*, got 'momentun'. Did you mean 'momentum'"),
    "no number": ("momentum:high", ValueError, "takes a number after the colon, its decay; got 'momentum:high'"),
    "out of range": ("momentum:1", ValueError, "decay must be between 0 and 1, got 1.0"),
    "an int": (3, TypeError, "control_variate must be one of .* or a function of the parameters; got int"),
}


@pytest.mark.parametrize(("given", "error", "text"), WRONG.values(), ids=WRONG)
def test_no_control_variate(given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_control_variate(given)


def test_a_guess_of_other_names_or_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must return a tensor for each of \['b', 'w'\], got \['w'\]"):
        forward_gradient(loss, POINT, control_variate=lambda p: {"w": p["w"]})
    with pytest.raises(ValueError, match=r"control_variate's 'b' must have shape \(3,\), got \(3, 4\)"):
        forward_gradient(loss, POINT, control_variate=lambda p: dict.fromkeys(p, p["w"]))
