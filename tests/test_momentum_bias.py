"""Directions mixed with the mean of past estimates: the stated bias, what is gained and lost, and the state."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import samples
import torch
from samples import assert_same, exact_gradient, flatten, gradients, random, unflatten, weights
from test_directions import AllSigns, vectors
from torch import Tensor

from fwdgrad import ForwardGradient
from fwdgrad.diagnostics import diagnose
from fwdgrad.directions import DIRECTIONS, Guided, Normal, Rademacher
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense

PARAMS = {"w": random(2, 3), "s": random(), "b": random(2)}
COUNT = 9
MEAN, GRADIENT = random(COUNT, seed=3), random(COUNT, seed=4)
TOWARD = MEAN / MEAN.norm()
BIASES = [0.1, 0.5, 0.9]
assert_close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def guided(direction: Any, bias: float, mean: Tensor = MEAN, params: dict[str, Tensor] = PARAMS) -> Guided:
    """Return directions that have learnt a mean, of any length."""
    made = Guided(direction, bias, decay=0.0)
    made.start(params)
    rows = unflatten(mean.unsqueeze(0), params)
    made.observe({name: Dense(value) for name, value in rows.items()}, torch.tensor([0.25]))
    made.finish()
    return made


def covariance(bias: float) -> Tensor:
    """Return the stated ``(1 - a) I + a P c c^T``."""
    return (1 - bias) * torch.eye(COUNT, dtype=torch.float64) + bias * COUNT * torch.outer(TOWARD, TOWARD)


def all_patterns(bias: float) -> Tensor:
    """Return the directions of every pattern of the signs u and e."""
    generator = AllSigns(COUNT + 1)
    rows = vectors(guided(Rademacher(), bias), PARAMS, generator)
    generator.check_all_used()
    return rows


@pytest.mark.parametrize("bias", BIASES)
def test_over_all_patterns_of_signs_the_stated_bias_is_exact(bias: float) -> None:
    rows = all_patterns(bias)
    assert_close(rows.T @ rows / len(rows), covariance(bias))
    estimates = (rows @ GRADIENT).unsqueeze(1) * rows
    along = GRADIENT @ TOWARD
    expected = (1 - bias) * GRADIENT + bias * COUNT * along * TOWARD
    assert_close(estimates.mean(0), expected)
    assert (estimates.mean(0) - GRADIENT).norm() > 0.1 * GRADIENT.norm()  # it is biased
    assert_close(rows.square().sum(1).mean().item(), float(COUNT))
    # (1 - a)^2 P |g|^2 + a (1 - a) P (|g|^2 + (P + 4) (g.c)^2) + a^2 P^2 (g.c)^2 for signs
    square = GRADIENT.square().sum()
    mixed = bias * (1 - bias) * COUNT * (square + (COUNT + 4) * along**2)
    second = (1 - bias) ** 2 * COUNT * square + mixed + bias**2 * COUNT**2 * along**2
    assert_close(estimates.square().sum(1).mean(), second)


@pytest.mark.parametrize("bias", BIASES)
def test_the_squared_cosine_is_a_mixture_of_that_of_chance_and_that_of_the_mean(bias: float) -> None:
    rows = all_patterns(bias)
    cosine = (GRADIENT @ TOWARD) ** 2 / GRADIENT.square().sum()
    mixture = (1 - bias) / COUNT + bias * cosine
    assert_close((rows @ GRADIENT).square().mean() / GRADIENT.square().sum() / COUNT, mixture)
    assert_close((rows @ TOWARD).square().mean().item() / COUNT, (1 - bias) / COUNT + bias)


@pytest.mark.parametrize("name", [name for name in DIRECTIONS if name != "per_example"])
def test_sampled_directions_have_the_stated_covariance(name: str) -> None:
    n, bias = 10_000, 0.3
    rows = vectors(guided(DIRECTIONS[name](), bias), PARAMS, KeyedGenerator(0, 0, range(n)))

    def distance(stated: Tensor) -> Tensor:
        """Return the greatest distance of an entry of the mean of v v^T from what is stated, in standard errors."""
        products = rows.unsqueeze(2) * rows.unsqueeze(1)
        return ((products.mean(0) - stated).abs() / (products.std(0) / math.sqrt(n) + 1e-9)).max()

    assert distance(covariance(bias)) <= 5
    assert distance(covariance(1.4 * bias)) > 5
    assert distance(torch.eye(COUNT, dtype=torch.float64)) > 5


@pytest.mark.parametrize("bias", BIASES)
def test_a_mean_along_the_gradient_improves_the_cosine_as_stated(bias: float) -> None:
    model, closure = samples.mlp()
    gradient = exact_gradient(model, closure)
    flat, n = flatten(gradient), 16384
    count = flat.numel()
    estimator = ForwardGradient("rademacher", n, engine="dual", momentum_bias=bias)
    estimator.guided = estimator.direction = guided(Rademacher(), bias, flat, gradient)
    estimator(model, closure)
    assert estimator.last is not None and estimator.last.directional_derivatives is not None
    squares = estimator.last.directional_derivatives.square() / flat.square().sum() / count
    deviation = squares.std() / math.sqrt(n)
    assert abs(squares.mean() - ((1 - bias) / count + bias)) <= 5 * deviation
    assert abs(squares.mean() - 1.1 * ((1 - bias) / count + bias)) > 5 * deviation
    # The estimate itself is then along the gradient, (1 - a + a P) times as long, but for what u adds.
    mean = (1 - bias + bias * count) * flat
    second = (1 - bias) ** 2 * count + bias * (1 - bias) * count * (count + 5) + bias**2 * count**2
    spread = (second * flat.square().sum() - mean.square().sum()).clamp_min(0) / n
    assert (flatten(gradients(model)) - mean).norm() <= 6 * spread.sqrt()
    assert (flatten(gradients(model)) - 1.2 * mean).norm() > 6 * spread.sqrt()


def test_a_diagnosis_shows_the_bias_and_states_no_theory() -> None:
    model, closure = samples.mlp()
    gradient = exact_gradient(model, closure)
    plain = ForwardGradient("rademacher", 16, engine="dual")
    biased = ForwardGradient("rademacher", 16, engine="dual", momentum_bias=0.5)
    biased.guided = biased.direction = guided(Rademacher(), 0.5, flatten(gradient), gradient)
    before, after = (diagnose(model, closure, each, samples=32).total for each in (plain, biased))
    assert abs(before.bias_z) < 4 < after.bias_z
    assert after.cosine > before.cosine
    assert after.expected_variance is None


def test_before_the_first_estimate_the_directions_are_those_given() -> None:
    generator = KeyedGenerator(0, 0, range(3))
    for made in (Guided(Normal(), 0.5), guided(Normal(), 0.5, torch.zeros(COUNT))):
        assert torch.equal(vectors(made, PARAMS, generator), vectors(Normal(), PARAMS, generator))
    assert not torch.equal(vectors(guided(Normal(), 0.5), PARAMS, generator), vectors(Normal(), PARAMS, generator))


def test_the_mean_is_that_of_past_estimates() -> None:
    model, closure = samples.mlp()
    estimator, decay = ForwardGradient(num_directions=2, momentum_bias=0.3), 0.99
    expected = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    for _ in range(3):
        model.zero_grad()
        estimator(model, closure)
        for name, value in gradients(model).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    assert_same(estimator.state_dict()["guided"], expected)


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_see_the_same_mean(chunk_size: int) -> None:
    results = []
    for size in (None, chunk_size):
        model, closure = samples.mlp()
        estimator = ForwardGradient("low_rank", 3, "dual", size, momentum_bias=0.5)
        for _ in range(3):
            model.zero_grad()
            estimator(model, closure)
        results.append((gradients(model), estimator.state_dict()["guided"]))
    assert_same(results[1][0], results[0][0])
    assert_same(results[1][1], results[0][1])


@pytest.mark.parametrize("engine", ["dual", "finite_difference"])
def test_engines_agree(engine: str) -> None:
    results = []
    for each in ("func", engine):
        model, closure = samples.mlp()
        estimator = ForwardGradient("low_rank", 2, each, momentum_bias=0.5)
        for _ in range(3):
            estimator(model, closure)
        results.append(gradients(model))
    assert_same(results[1], results[0], 1e-10 if engine == "dual" else 1e-6)


def test_an_optimizer_that_takes_factors_applies_the_same_estimate() -> None:
    results = []
    for kind in (FactoredSGD, torch.optim.SGD):
        model, closure = samples.mlp()
        optimizer = kind(model.parameters(), lr=0.05)
        estimator = ForwardGradient("low_rank", 3, "dual", optimizer=optimizer, momentum_bias=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            estimator(model, closure)
            optimizer.step()
        results.append(weights(model))
    assert_same(results[0], results[1])


@pytest.mark.parametrize("shared", [True, False])
def test_replicas_that_exchange_derivatives_stay_equal(shared: bool) -> None:
    """Each replica sees half of the batch; with the mean of both derivatives they make the step of the whole batch."""
    model, closure = samples.mlp()
    options: dict[str, Any] = {"num_directions": 2, "momentum_bias": 0.5}
    whole = ForwardGradient(**options)
    parts = [slice(0, 2), slice(2, 4)]
    replicas = [copy.deepcopy(model) for _ in parts]
    estimators = [ForwardGradient(**options) for _ in parts]
    for _ in range(4):
        model.zero_grad()
        whole(model, lambda m: closure(m)[:4])
        own = []  # what each replica would have seen alone, by estimators in the same state
        for replica, estimator, part in zip(replicas, estimators, parts, strict=True):
            probe = copy.deepcopy(estimator)
            probe.reduce = None
            probe(copy.deepcopy(replica), lambda m, part=part: closure(m)[part])
            assert probe.last is not None and probe.last.directional_derivatives is not None
            own.append(probe.last.directional_derivatives)
        for replica, estimator, part in zip(replicas, estimators, parts, strict=True):
            estimator.reduce = (lambda derivatives: (own[0] + own[1]) / 2) if shared else None  # noqa: B023
            replica.zero_grad()
            estimator(replica, lambda m, part=part: closure(m)[part])
    states = [estimator.state_dict()["guided"] for estimator in estimators]
    assert torch.equal(flatten(states[0]), flatten(states[1])) is shared
    if shared:
        assert_same(gradients(replicas[0]), gradients(model))


def test_a_step_that_fails_halfway_teaches_nothing() -> None:
    model, closure = samples.mlp()
    estimator = ForwardGradient(num_directions=3, chunk_size=1, momentum_bias=0.5)
    estimator(model, closure)
    before = estimator.state_dict()["guided"]
    calls = iter(range(10))

    def failing(model: Any) -> Tensor:
        if next(calls) == 1:
            raise ArithmeticError("halfway")
        return closure(model)

    with pytest.raises(ArithmeticError):
        estimator(model, failing)
    assert_same(estimator.state_dict()["guided"], before, tolerance=0.0)
    other = ForwardGradient(num_directions=3, chunk_size=1, momentum_bias=0.5)
    other.load_state_dict(estimator.state_dict())
    for each in (estimator, other):
        each(model, closure)
    assert_same(estimator.state_dict()["guided"], other.state_dict()["guided"], tolerance=0.0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"momentum_bias": 0}, "momentum_bias must be between 0 and 1, both excluded, got 0"),
    "one": ({"momentum_bias": 1.0}, "momentum_bias must be between 0 and 1, both excluded, got 1.0"),
    "a bool": ({"momentum_bias": True}, "momentum_bias must be between 0 and 1, both excluded, got True"),
    "a word": ({"momentum_bias": "half"}, "momentum_bias must be between 0 and 1, both excluded, got 'half'"),
    "replay": ({"replay": True, "engine": "dual"}, "which replay avoids; use replay=False"),
    "projection": ({"aggregation": "projection"}, "aggregation='projection' needs directions without a preferred one"),
    "control variate": ({"control_variate": "momentum"}, "control_variate is unbiased only with .* use one of the two"),
    "per-example": (
        {"direction": "per_example", "engine": "dual"},
        "per-example directions are many; use another direction, such as 'low_rank', or leave momentum_bias out",
    ),
}


@pytest.mark.parametrize(("options", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_combined_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ForwardGradient(**{"momentum_bias": 0.5, **options})


def test_a_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="decay must be from 0 to 1, 1 excluded, got 1"):
        Guided(Normal(), 0.5, decay=1.0)
