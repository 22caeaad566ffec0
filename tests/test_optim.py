"""An estimate given as factors is applied as the same estimate in ``.grad`` is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import samples
import torch
from samples import assert_same, gradients, random, weights
from torch import Tensor, nn

from fwdgrad import ForwardGradient
from fwdgrad.engines import ENGINES
from fwdgrad.optim import FactoredSGD
from fwdgrad.tangents import Dense

LR = 0.05
DIRECTIONS = [("normal", "func"), ("rademacher", "func"), ("sphere", "func"), ("low_rank", "func")]
DIRECTIONS += [(direction, "dual") for direction in ("low_rank", "per_example") if "dual" in ENGINES]
every_direction = pytest.mark.parametrize(("direction", "engine"), DIRECTIONS)


def run(
    model: nn.Module,
    closure: samples.Closure,
    estimator: ForwardGradient,
    optimizer: torch.optim.Optimizer,
    before_step: Callable[[], object] = lambda: None,
    calls: int = 1,
) -> dict[str, Tensor]:
    """Take three steps, each of ``calls`` accumulated estimates; return the weights."""
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(calls):
            estimator(model, closure)
        before_step()
        optimizer.step()
    return weights(model)


@every_direction
@pytest.mark.parametrize("num_directions", [1, 4])
@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("calls", [1, 2])
def test_factored_steps_equal_dense_ones(
    direction: str, engine: str, num_directions: int, chunk_size: int | None, weight_decay: float, calls: int
) -> None:
    results = []
    for kind in (FactoredSGD, torch.optim.SGD):
        model, closure = samples.mlp()
        optimizer = kind(model.parameters(), lr=LR, weight_decay=weight_decay)
        estimator = ForwardGradient(direction, num_directions, engine, chunk_size, optimizer=optimizer)
        results.append(run(model, closure, estimator, optimizer, calls=calls))
        if kind is FactoredSGD:
            assert not gradients(model)
    assert_same(results[0], results[1])
    start = weights(samples.mlp()[0])
    assert all(not torch.allclose(results[0][name], start[name], rtol=1e-3) for name in start)


@pytest.mark.parametrize("make", [samples.conv, samples.tied], ids=["conv", "tied"])
def test_factored_steps_equal_dense_ones_on_convolutions_in_any_layout_and_tied_weights(
    make: Callable[[], tuple[nn.Module, samples.Closure]],
) -> None:
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for kind in (FactoredSGD, torch.optim.SGD):
            model, closure = make()
            model.to(memory_format=memory_format)
            torch.manual_seed(0)
            optimizer = kind(model.parameters(), lr=LR)
            estimator = ForwardGradient("low_rank", 2, optimizer=optimizer)
            results.append(run(model, closure, estimator, optimizer))
    for result in results[1:]:
        assert_same(result, results[0])


@every_direction
@pytest.mark.parametrize(("num_directions", "chunk_size"), [(1, None), (4, None), (4, 1)])
def test_grad_norm_and_scale_grad_are_those_of_the_dense_estimate(
    direction: str, engine: str, num_directions: int, chunk_size: int | None
) -> None:
    model, closure = samples.mlp()
    optimizer = FactoredSGD(model.parameters(), lr=LR)
    ForwardGradient(direction, num_directions, engine, chunk_size, optimizer=optimizer)(model, closure)
    dense, _ = samples.mlp()
    ForwardGradient(direction, num_directions, engine, chunk_size)(dense, closure)
    expected = torch.nn.utils.get_total_norm([param.grad for param in dense.parameters()])
    torch.testing.assert_close(optimizer.grad_norm(), expected)
    optimizer.scale_grad(torch.tensor(0.5))
    torch.testing.assert_close(optimizer.grad_norm(), 0.5 * expected)


def test_clipping_factors_equals_clipping_grad() -> None:
    results = []
    for kind in (FactoredSGD, torch.optim.SGD):
        model, closure = samples.mlp()
        optimizer = kind(model.parameters(), lr=LR)

        def clip(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            if isinstance(optimizer, FactoredSGD):
                optimizer.scale_grad((0.1 / (optimizer.grad_norm() + 1e-6)).clamp_max(1))
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

        results.append(run(model, closure, ForwardGradient("low_rank", 2, optimizer=optimizer), optimizer, clip))
    assert_same(results[0], results[1])


def test_a_dense_grad_is_applied_scaled_and_measured_beside_the_factors() -> None:
    model, closure = samples.mlp()
    optimizer = FactoredSGD(model.parameters(), lr=LR)
    start = weights(model)
    ForwardGradient("low_rank", optimizer=optimizer)(model, closure)
    ForwardGradient("low_rank", seed=1)(model, closure)
    dense, _ = samples.mlp()
    for seed in (0, 1):
        ForwardGradient("low_rank", seed=seed)(dense, closure)
    expected = gradients(dense)
    total = torch.nn.utils.get_total_norm(list(expected.values()))
    torch.testing.assert_close(optimizer.grad_norm(), total)
    optimizer.scale_grad(torch.tensor(2.0))
    torch.testing.assert_close(optimizer.grad_norm(), 2 * total)
    optimizer.step()
    assert_same(weights(model), {name: start[name] - 2 * LR * expected[name] for name in start})


def test_zero_grad_forgets_and_a_second_step_repeats() -> None:
    model, closure = samples.mlp()
    optimizer = FactoredSGD(model.parameters(), lr=LR)
    estimator, start = ForwardGradient("low_rank", optimizer=optimizer), weights(model)
    assert optimizer.grad_norm() == 0
    estimator(model, closure)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.grad_norm() == 0
    assert_same(weights(model), start, tolerance=0.0)
    estimator(model, closure)
    optimizer.step()
    once = weights(model)
    optimizer.step()
    assert_same(weights(model), {name: 2 * once[name] - start[name] for name in start})


def test_groups_and_schedulers_work() -> None:
    results = []
    for kind in (FactoredSGD, torch.optim.SGD):
        model, closure = samples.mlp()
        groups = [
            {"params": model[0].parameters(), "lr": 0.1},
            {"params": model[2].parameters(), "weight_decay": 0.5},
        ]
        optimizer = kind(groups, lr=LR)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        estimator = ForwardGradient("low_rank", optimizer=optimizer)
        for _ in range(3):
            run(model, closure, estimator, optimizer)
            scheduler.step()
        results.append(weights(model))
    assert_same(results[0], results[1])


def test_the_norm_of_directions_that_cancel_is_zero() -> None:
    param = nn.Parameter(torch.zeros(1000))
    optimizer = FactoredSGD([param], lr=LR)
    vector = random(1, 1000).float()
    for ratio in (1.1, 1.3, 1.7, 2.3, 3.1):
        optimizer.zero_grad()
        optimizer.deposit(param, Dense(torch.cat([vector, ratio * vector])), torch.tensor([ratio, -1.0]))
        assert 0 <= optimizer.grad_norm() < 1e-1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_starts_without_an_estimate(duplicate: Callable[[FactoredSGD], FactoredSGD]) -> None:
    model, closure = samples.mlp()
    optimizer = FactoredSGD(model.parameters(), lr=LR)
    ForwardGradient(optimizer=optimizer)(model, closure)
    other = duplicate(optimizer)
    assert other.grad_norm() == 0
    other.step()
    other.zero_grad()
    assert optimizer.grad_norm() > 0


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_negative_coefficients_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be zero or positive, got {value}"):
        FactoredSGD([nn.Parameter(torch.zeros(2))], **{name: value})
