"""Clipping at a running median, and what happens to derivatives that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import samples
import torch
from samples import assert_same, flatten, gradients, random, trainable
from torch import Tensor, nn

from fwdgrad import ForwardGradient
from fwdgrad.directions import Normal
from fwdgrad.engines import Evaluation, Func
from fwdgrad.estimators.stability import NonFiniteDerivativeError, Safeguard
from fwdgrad.randomness import KeyedGenerator

MEDIAN_OF_NORMAL = 0.67448975


def observed(*steps: Tensor, clip: float = 3.0) -> Safeguard:
    safeguard = Safeguard(clip)
    for derivatives in steps:
        safeguard.observe(derivatives)
    return safeguard


@pytest.mark.parametrize("count", [1, 64])
def test_the_running_median_finds_the_median_and_follows_it(count: int) -> None:
    steps = [random(count, seed=step) for step in range(400)]
    before = observed(*steps)
    assert 0.5 < float(before.median) / MEDIAN_OF_NORMAL < 2
    for step in range(400, 500):
        before.observe(100 * random(count, seed=step))
    assert 0.5 < float(before.median) / (100 * MEDIAN_OF_NORMAL) < 2


def test_an_outlier_moves_the_median_by_a_tenth_at_most() -> None:
    safeguard = observed(*[random(4, seed=step) for step in range(50)])
    before = float(safeguard.median)
    safeguard.observe(torch.full((4,), 1e30, dtype=torch.float64))
    assert float(safeguard.median) == pytest.approx(before * math.exp(0.1))


def test_a_median_of_zero_begins_anew() -> None:
    safeguard = observed(torch.zeros(3), torch.zeros(3))
    assert torch.equal(safeguard.apply(torch.tensor([5.0])), torch.tensor([5.0]))
    safeguard.observe(torch.tensor([1.0, 2.0, 3.0]))
    assert float(safeguard.median) == 2.0


def test_derivatives_are_clipped_at_so_many_medians_of_the_steps_before() -> None:
    safeguard = Safeguard(2.0)
    first = torch.tensor([1.0, -100.0, 3.0])
    assert torch.equal(safeguard.apply(first), first)
    safeguard.observe(first)
    assert torch.equal(safeguard.apply(torch.tensor([7.0, -7.0, 5.0])), torch.tensor([6.0, -6.0, 5.0]))
    assert torch.equal(Safeguard(None).apply(100 * first), 100 * first)


@pytest.mark.parametrize("clip", [1.0, 2.0, 3.0])
def test_clipping_normal_derivatives_shrinks_the_estimate_by_the_stated_factor(clip: float) -> None:
    n = 20000
    z = random(n)
    safeguard = Safeguard(clip)
    safeguard.median = torch.tensor(MEDIAN_OF_NORMAL, dtype=torch.float64)
    products = z * safeguard.apply(z)
    expected = math.erf(clip * MEDIAN_OF_NORMAL / math.sqrt(2))
    deviation = float(products.std()) / math.sqrt(n)
    assert abs(float(products.mean()) - expected) <= 5 * deviation
    assert abs(float(products.mean()) - 0.9 * expected) > 5 * deviation
    if clip in (2.0, 3.0):
        assert round(expected, 3) == {2.0: 0.823, 3.0: 0.957}[clip]


@pytest.mark.parametrize("direction", ["normal", "per_example"])
@pytest.mark.parametrize("aggregation", ["mean", "projection"])
def test_the_estimator_clips_what_weights_its_directions(direction: str, aggregation: str) -> None:
    if (direction, aggregation) == ("per_example", "projection"):
        return
    norms = []
    for clip in (None, 1e-3, 1e9):
        model, closure = samples.mlp()
        estimator = ForwardGradient(direction, 3, "dual", aggregation=aggregation, clip_derivatives=clip)
        estimator(model, closure)
        model.zero_grad()
        estimator(model, closure)
        norms.append(flatten(gradients(model)).norm())
    assert norms[1] < 0.01 * norms[0]
    torch.testing.assert_close(norms[2], norms[0])


def test_clipping_does_not_depend_on_the_chunks() -> None:
    results = []
    for chunk_size in (None, 1, 2):
        model, closure = samples.mlp()
        estimator = ForwardGradient("normal", 5, chunk_size=chunk_size, clip_derivatives=0.5)
        for _ in range(3):
            estimator(model, closure)
        results.append(gradients(model))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def root_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Return losses whose slope is infinite for the examples that are zero."""
    return model(x).flatten().abs().sqrt()


@pytest.mark.parametrize("engine", ["func", "dual"])
def test_an_example_without_a_finite_derivative_is_left_out_of_per_example_directions(engine: str) -> None:
    model = nn.Linear(3, 1, bias=False).double()
    x = random(4, 3)
    bad = x.clone()
    bad[2] = 0
    if engine == "dual":
        estimator = ForwardGradient("per_example", 2, engine)
        estimator(model, lambda m: root_loss(m, bad))
        assert int(estimator.last.skipped) == 2
        assert torch.isfinite(model.weight.grad).all() and model.weight.grad.norm() > 0
    # A shared direction has one derivative, of the mean: the whole direction is left out.
    model.zero_grad()
    shared = ForwardGradient("normal", 2, engine)
    shared(model, lambda m: root_loss(m, bad))
    assert int(shared.last.skipped) == 2
    assert torch.equal(model.weight.grad, torch.zeros_like(model.weight))
    shared(model, lambda m: root_loss(m, x))
    assert int(shared.last.skipped) == 2
    assert model.weight.grad.norm() > 0


@pytest.mark.parametrize("aggregation", ["mean", "projection"])
def test_one_direction_that_is_not_finite_leaves_the_others(aggregation: str) -> None:
    class Broken(Func):
        def __call__(self, *arguments: Any) -> Evaluation:
            evaluation = super().__call__(*arguments)
            evaluation.derivatives[1] = torch.inf
            return evaluation

    model, closure = samples.mlp()
    estimator = ForwardGradient("normal", 3, Broken(), aggregation=aggregation)
    estimator(model, lambda m: closure(m).mean())
    assert int(estimator.last.skipped) == 1
    whole = gradients(model)
    assert torch.isfinite(flatten(whole)).all()
    model.zero_grad()
    rows = [0, 2]
    drawn = Normal().sample({n: p.detach() for n, p in trainable(model).items()}, KeyedGenerator(0, 0, range(3)))
    others = {name: tangent.values[rows] for name, tangent in drawn.items()}
    ForwardGradient(lambda params, generator: others, 2, aggregation=aggregation)(model, closure)
    # The mean is still over three, the projection is onto what there is.
    share = {"mean": 2 / 3, "projection": 1.0}[aggregation]
    assert_same(whole, {name: share * value for name, value in gradients(model).items()}, 1e-9)


def test_it_stops_after_so_many_steps_in_a_row() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, torch.nan])
    safeguard = Safeguard(None, patience=3)
    for derivatives in (bad, bad, good, bad, bad):
        safeguard.observe(derivatives)
    assert int(safeguard.skipped) == 4
    with pytest.raises(NonFiniteDerivativeError, match=r"not finite in 3 steps in a row, 5 of them in all; lower the"):
        safeguard.observe(bad)


def test_the_count_goes_on_after_a_restart() -> None:
    bad = torch.tensor([torch.inf])
    safeguard, other = Safeguard(2.0, patience=3), Safeguard(2.0, patience=3)
    safeguard.observe(torch.tensor([4.0]))
    safeguard.observe(bad)
    safeguard.observe(bad)
    other.load_state_dict(safeguard.state_dict())
    assert torch.equal(other.apply(torch.tensor([1e9])), safeguard.apply(torch.tensor([1e9])))
    with pytest.raises(NonFiniteDerivativeError, match="3 of them in all"):
        other.observe(bad)


@pytest.mark.parametrize("clip", [0, -1.0, True, float("nan"), "3"])
def test_a_wrong_number_of_medians(clip: object) -> None:
    with pytest.raises(
        ValueError, match=f"clip_derivatives must be a positive number of medians or None, got {clip!r}"
    ):
        ForwardGradient(clip_derivatives=clip)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patience must be a positive integer, got 0"):
        ForwardGradient(patience=0)
