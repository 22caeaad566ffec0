"""Zeroth order: the stated bias, variance and number of passes; parameters that nobody touches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import samples
import torch
from samples import assert_same, flatten, gradients, weights
from torch import Tensor, nn

from fwdgrad import ForwardGradient, ZerothOrder
from fwdgrad.engines import FiniteDifference
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense

P, H = 3, 0.25  # a large displacement, so that its effects stand out
SIGNS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=P)), dtype=torch.float64)
CUBIC = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
HESSIAN = torch.tensor([[2.0, 1.0, 0.0], [1.0, -3.0, 0.5], [0.0, 0.5, 4.0]], dtype=torch.float64)


class Vector(nn.Module):
    """One parameter of P entries."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64))


class AllSigns:
    """Every vector of P signs as a direction of its own: their mean is the expectation for random signs."""

    separable = True

    def sample(self, params: Mapping[str, Tensor], generator: KeyedGenerator) -> dict[str, Dense]:
        return {"theta": Dense(SIGNS[list(generator.indices)])}


def cubic(model: Any) -> Tensor:
    return (CUBIC * model.theta**3).sum()


def quadratic(model: Any) -> Tensor:
    return model.theta @ HESSIAN @ model.theta / 2


def expectation(closure: Callable[[Any], Tensor], antithetic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the exact gradient, the mean of the estimate over all signs, and the reported loss."""
    model = Vector()
    exact = torch.autograd.grad(closure(model), model.theta)[0]
    loss = ZerothOrder(AllSigns(), len(SIGNS), H, antithetic)(model, closure)
    assert model.theta.grad is not None
    return exact, model.theta.grad, loss


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_bias_is_a_sixth_of_h_squared_times_the_third_derivative(antithetic: bool) -> None:
    # D^3 f[v, v, v] = 6 sum_i c_i v_i^3, and E[v_i^3 v_j] = 1 for i = j, else 0.
    exact, mean, _ = expectation(cubic, antithetic)
    torch.testing.assert_close(mean - exact, H**2 * CUBIC, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mean - exact, 1.001 * H**2 * CUBIC, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_quadratic_has_no_bias(antithetic: bool) -> None:
    exact, mean, _ = expectation(quadratic, antithetic)
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=1e-12)


def test_one_sided_differences_have_the_stated_variance_on_top() -> None:
    moments = {}
    for antithetic in (True, False):
        estimates = []
        for v in SIGNS:
            model = Vector()
            ZerothOrder(lambda_direction(v), 1, H, antithetic)(model, quadratic)
            estimates.append(model.theta.grad)
        moments[antithetic] = torch.stack(estimates).square().sum(1).mean()  # type: ignore[arg-type]
    curvature = torch.stack([v @ HESSIAN @ v for v in SIGNS])
    expected = H**2 / 4 * (curvature.square() * P).mean()
    torch.testing.assert_close(moments[False] - moments[True], expected)
    torch.testing.assert_close(moments[True], P * (HESSIAN @ Vector().theta.detach()).square().sum())


def lambda_direction(v: Tensor) -> Any:
    class One:
        separable = True

        def sample(self, params: Mapping[str, Tensor], generator: KeyedGenerator) -> dict[str, Dense]:
            return {"theta": Dense(v.unsqueeze(0).clone())}

    return One()


def test_the_reported_loss_lies_above_by_half_h_squared_times_the_trace() -> None:
    loss = expectation(quadratic, antithetic=True)[2]
    torch.testing.assert_close(loss - quadratic(Vector()).detach(), H**2 / 2 * HESSIAN.trace())
    loss = expectation(quadratic, antithetic=False)[2]
    torch.testing.assert_close(loss, quadratic(Vector()).detach())


class Counted:
    """A closure that counts its calls, and fails at one of them."""

    def __init__(self, closure: samples.Closure, fails_at: int | None = None) -> None:
        self.closure, self.fails_at, self.calls = closure, fails_at, 0

    def __call__(self, model: nn.Module) -> Tensor:
        loss = self.closure(model)
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        return loss


@pytest.mark.parametrize(("antithetic", "passes"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("make", [samples.mlp, samples.batch_norm], ids=["mlp", "batch_norm"])
def test_the_number_of_forward_passes(antithetic: bool, passes: int, make: Callable[..., Any]) -> None:
    model, closure = make()
    extra = int(not antithetic or make is samples.batch_norm)  # at the parameters themselves
    for num_directions in (1, 3):
        counted = Counted(closure)
        ZerothOrder("normal", num_directions, antithetic=antithetic)(model, counted)
        assert counted.calls == passes * num_directions + extra
    model.eval()
    counted = Counted(closure)
    ZerothOrder("normal", 3, antithetic=antithetic)(model, counted)
    assert counted.calls == passes * 3 + (not antithetic)


@pytest.mark.parametrize("fails_at", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("make", [samples.mlp, samples.conv], ids=["mlp", "conv"])
def test_parameters_stay_as_they_are_bit_by_bit_even_where_a_pass_fails(
    make: Callable[..., Any], fails_at: int | None
) -> None:
    model, closure = make()
    model.float()
    params, before = dict(model.named_parameters()), weights(model)
    versions = {name: param._version for name, param in params.items()}
    counted = Counted(lambda m: closure(model_in_double(m)), fails_at)
    try:
        ZerothOrder("normal", 2)(model, counted)
    except KeyboardInterrupt:
        assert fails_at is not None
    assert counted.calls == (fails_at or 4 + (make is samples.conv))
    assert all(param is params[name] for name, param in model.named_parameters())
    assert {name: param._version for name, param in params.items()} == versions
    assert_same(weights(model), before, tolerance=0.0)


def model_in_double(model: nn.Module) -> Any:
    return lambda x: model(x.float()).double()


def test_adding_and_taking_away_in_place_would_leave_rounding_errors() -> None:
    before = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    v, param = torch.randn(10_000, generator=torch.Generator().manual_seed(1)), before.clone()
    for h in (1e-3, -2e-3, 1e-3):
        param.add_(v, alpha=h)
    assert not torch.equal(param, before)


def test_operations_without_forward_mode_can_be_trained() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x**3

    custom = lambda model: (CUBIC * Cube.apply(model.theta)).sum()  # noqa: E731
    model = Vector()
    with pytest.raises(RuntimeError):
        ForwardGradient()(model, custom)
    estimates = []
    for closure in (custom, cubic):
        model.zero_grad()
        ZerothOrder(num_directions=3)(model, closure)
        estimates.append(gradients(model))
    assert_same(estimates[0], estimates[1])


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("direction", ["normal", "low_rank"])
def test_the_estimate_is_that_of_differences_along_the_stored_directions(direction: str, antithetic: bool) -> None:
    model, closure = samples.dropout()
    results = []
    for replayed in (True, False):
        model.zero_grad()
        torch.manual_seed(0)
        engine = FiniteDifference(1e-2, antithetic)
        estimator = ZerothOrder(direction, 3, 1e-2, antithetic) if replayed else ForwardGradient(direction, 3, engine)
        estimator(model, closure)
        results.append(gradients(model))
    assert_same(results[0], results[1], tolerance=1e-10)


def test_steps_in_place_equal_those_from_grad() -> None:
    results = []
    for kind in (FactoredSGD, torch.optim.SGD):
        model, closure = samples.mlp()
        optimizer = kind(model.parameters(), lr=0.1)
        estimator = ZerothOrder("normal", 2, optimizer=optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            estimator(model, closure)
            assert not (gradients(model) and kind is FactoredSGD)
            optimizer.step()
        results.append(weights(model))
    assert_same(results[0], results[1])
    assert not torch.equal(flatten(results[0]), flatten(weights(samples.mlp()[0])))


@pytest.mark.parametrize("step_size", [0, -1.0])
def test_a_step_size_that_is_not_positive_is_refused(step_size: float) -> None:
    with pytest.raises(ValueError, match=f"step_size must be positive, got {step_size}"):
        ZerothOrder(step_size=step_size)


def test_a_direction_that_cannot_be_replayed_is_refused() -> None:
    text = "replay draws each parameter's direction on its own, which {} does not offer; use 'normal', 'rademacher', "
    with pytest.raises(ValueError, match=text.format("Sphere")):
        ZerothOrder("sphere")
    with pytest.raises(ValueError, match=text.format("PerExample")):
        ZerothOrder("per_example")
    with pytest.raises(ValueError, match=text.format("FromCallable")):
        ZerothOrder(samples.orthogonal_basis)
