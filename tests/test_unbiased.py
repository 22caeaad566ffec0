"""The mean of many estimates is the gradient, within a bound from their known variance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import samples
import torch
from methods import METHODS, Method, every_method
from samples import Closure, exact_gradient, flatten, gradients
from torch import Tensor, nn

from fwdgrad import ForwardGradient
from fwdgrad.directions import Normal
from fwdgrad.randomness import KeyedGenerator


def per_example_gradients(model: nn.Module, closure: Closure) -> Tensor:
    """Return the gradients of the per-example losses, shape (B, P)."""
    losses = closure(model)
    return torch.stack([flatten(exact_gradient(model, lambda m, b=b: closure(m)[b])) for b in range(len(losses))])


def assert_unbiased(method: Method, model: nn.Module, closure: Closure) -> None:
    """Assert that a mean of N one-direction estimates is within six standard deviations of the gradient."""
    per_example = per_example_gradients(model, closure)
    estimator = method.make(num_directions=method.samples // method.steps, chunk_size=512)
    for _ in range(method.steps):
        estimator(model, closure)
    estimate, gradient = flatten(gradients(model)) / method.steps, per_example.mean(0)
    variance = (method.second_moment(per_example) - gradient.square().sum()).clamp_min(0) / method.samples
    assert (estimate - gradient).norm() <= 6 * variance.sqrt() + method.tolerance * gradient.norm()


@every_method
@pytest.mark.parametrize("make", [samples.linear, samples.tied], ids=["linear", "tied"])
def test_unbiased(method: Method, make: Callable[[], tuple[nn.Module, Closure]]) -> None:
    assert_unbiased(method, *make())


def test_a_direction_scaled_by_a_tenth_fails_the_test_of_unbiasedness() -> None:
    class Scaled(Normal):
        def sample(self, params: Mapping[str, Tensor], generator: KeyedGenerator) -> dict[str, Tensor]:
            return {name: 1.1 * tangent.values for name, tangent in super().sample(params, generator).items()}

    honest = METHODS["forward_gradient-normal-func"]

    def make(num_directions: int, chunk_size: int | None) -> ForwardGradient:
        return ForwardGradient(Scaled().sample, num_directions, chunk_size=chunk_size)

    with pytest.raises(AssertionError):
        assert_unbiased(Method(make, honest.second_moment), *samples.linear())
