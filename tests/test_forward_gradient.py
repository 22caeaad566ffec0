"""The forward gradient is what its formula says: exact over a basis, linear, the same in any chunks."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Mapping

import pytest
import samples
import torch
from samples import assert_same, exact_gradient, flatten, gradients, orthogonal_basis, random, trainable
from torch import Tensor, nn

from fwdgrad import ForwardGradient, forward_gradient
from fwdgrad.directions import DIRECTIONS
from fwdgrad.engines import ENGINES
from fwdgrad.randomness import KeyedGenerator

TOLERANCE = {"finite_difference": 1e-6}
MODELS = [samples.mlp, samples.tied, samples.tied_embedding, samples.batch_norm, samples.dropout, samples.conv]
SHARED = [name for name in DIRECTIONS if name != "per_example"]
every_engine = pytest.mark.parametrize("engine", ENGINES)
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
Params = Mapping[str, Tensor]


def quadratic(params: Params) -> Tensor:
    w, b = params["w"], params["b"]
    return (w @ w.T).sum() + (w.sum(1) * b).sum() + b.square().sum()


def cubic(params: Params) -> Tensor:
    return (params["w"] * params["w"] * params["w"]).sum() + (params["w"].sum(1) * params["b"]).sum()


POINT = {"w": random(3, 4), "b": random(3, seed=1)}


@every_engine
@every_model
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_exact_over_an_orthogonal_basis(
    engine: str, make: Callable[[], tuple[nn.Module, samples.Closure]], chunk_size: int | None
) -> None:
    model, closure = make()
    torch.manual_seed(0)
    exact = exact_gradient(model, closure)
    count, tolerance = len(flatten(exact)), TOLERANCE.get(engine, 1e-10)
    ForwardGradient(orthogonal_basis, count, engine, chunk_size)(model, closure)
    assert_same(gradients(model), exact, tolerance)
    with pytest.raises(AssertionError):
        assert_same(gradients(model), {name: 1.001 * value for name, value in exact.items()}, tolerance)


@every_engine
def test_a_basis_without_its_last_vector_is_not_exact(engine: str) -> None:
    model, closure = samples.mlp()
    exact = exact_gradient(model, closure)
    ForwardGradient(orthogonal_basis, len(flatten(exact)) - 1, engine)(model, closure)
    with pytest.raises(AssertionError):
        assert_same(gradients(model), exact, 1e-3)


@every_engine
@pytest.mark.parametrize("direction", SHARED)
def test_the_estimate_is_the_mean_of_the_derivatives_times_the_directions(engine: str, direction: str) -> None:
    model, closure = samples.mlp()
    params = {name: param.detach() for name, param in trainable(model).items()}
    exact = flatten(exact_gradient(model, closure))
    estimator = ForwardGradient(direction, 5, engine, chunk_size=2, seed=3)
    estimator.step = 11
    estimator(model, closure)
    drawn = DIRECTIONS[direction]().sample(params, KeyedGenerator(3, 11, range(5)))
    rows = flatten({name: drawn[name].materialize() for name in params}, lead=1)
    tolerance = TOLERANCE.get(engine, 1e-10)
    assert estimator.last is not None
    derivatives = estimator.last.directional_derivatives
    torch.testing.assert_close(derivatives, rows @ exact, rtol=tolerance, atol=tolerance)
    expected = (rows @ exact) @ rows / 5
    torch.testing.assert_close(flatten(gradients(model)), expected, rtol=tolerance, atol=tolerance)


@every_engine
def test_linear_in_the_function(engine: str) -> None:
    def combined(params: Params) -> Tensor:
        return 2.0 * quadratic(params) - 0.5 * cubic(params)

    parts = [forward_gradient(fn, POINT, num_directions=3, engine=engine) for fn in (quadratic, cubic, combined)]
    expected = {name: 2.0 * parts[0].gradient[name] - 0.5 * parts[1].gradient[name] for name in POINT}
    assert_same(parts[2].gradient, expected, 100 * TOLERANCE.get(engine, 1e-10))


@every_engine
def test_homogeneous_of_degree_two_in_the_direction(engine: str) -> None:
    def scaled(scale: float) -> Callable[[Params, KeyedGenerator], dict[str, Tensor]]:
        return lambda params, generator: {name: scale * generator.normal(name, param) for name, param in params.items()}

    one, three = (
        forward_gradient(quadratic, POINT, direction=scaled(s), num_directions=2, engine=engine) for s in (1, 3)
    )
    tolerance = 100 * TOLERANCE.get(engine, 1e-10)
    expected = 3 * one.directional_derivatives
    torch.testing.assert_close(three.directional_derivatives, expected, rtol=tolerance, atol=tolerance)
    assert_same(three.gradient, {name: 9 * value for name, value in one.gradient.items()}, tolerance)


@every_engine
@pytest.mark.parametrize("make", [samples.conv, samples.dropout], ids=["conv", "dropout"])
@pytest.mark.parametrize("direction", SHARED)
def test_the_same_whatever_the_chunks(
    engine: str, make: Callable[[], tuple[nn.Module, samples.Closure]], direction: str
) -> None:
    results = []
    for chunk_size in (None, 1, 3, 5, 100):
        model, closure = make()
        torch.manual_seed(2)
        estimator = ForwardGradient(direction, 5, engine, chunk_size)
        loss = estimator(model, closure)
        assert estimator.last is not None
        derivatives = estimator.last.directional_derivatives
        results.append(gradients(model) | dict(model.named_buffers()) | {"loss": loss, "derivatives": derivatives})
    # Rounding that differs between one direction and several is divided by the step of a central difference.
    tolerance = 1e-7 if engine == "finite_difference" else 1e-11
    for result in results[1:]:
        assert_same(result, results[0], tolerance)


def test_fresh_dropout_masks_in_each_chunk_would_be_noticed() -> None:
    model, closure = samples.dropout()
    derivatives = []
    for _ in range(2):
        estimator = ForwardGradient("normal", 1)
        estimator(model, closure)
        assert estimator.last is not None
        derivatives.append(estimator.last.directional_derivatives)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(derivatives[0], derivatives[1])


@every_engine
def test_as_many_directions_as_desired(engine: str) -> None:
    estimate = forward_gradient(quadratic, POINT, num_directions=1000, engine=engine, chunk_size=300)
    assert estimate.directional_derivatives.shape == (1000,)
    few = forward_gradient(quadratic, POINT, num_directions=5, engine=engine)
    tolerance = TOLERANCE.get(engine, 1e-10)
    torch.testing.assert_close(
        estimate.directional_derivatives[:5], few.directional_derivatives, rtol=tolerance, atol=tolerance
    )


def test_steps_draw_new_directions_and_seeds_draw_others() -> None:
    one, again, next_step, other_seed = (
        forward_gradient(quadratic, POINT, seed=seed, step=step) for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert_same(one.gradient, again.gradient, tolerance=0.0)
    for other in (next_step, other_seed):
        assert not torch.equal(flatten(one.gradient), flatten(other.gradient))


def test_the_module_form_is_the_pure_form_at_its_step() -> None:
    model, closure = samples.mlp()
    estimator = ForwardGradient("low_rank", 3, seed=4)
    params = {name: param.detach() for name, param in trainable(model).items()}
    for step in range(3):
        model.zero_grad()
        estimator(model, closure)
        pure = forward_gradient(
            lambda p: closure(lambda x: torch.func.functional_call(model, dict(p), (x,))),  # type: ignore[arg-type]
            params,
            direction="low_rank",
            num_directions=3,
            seed=4,
            step=step,
        )
        assert_same(gradients(model), pure.gradient)


def test_per_example_losses_are_recorded_and_their_mean_is_the_loss() -> None:
    model, closure = samples.mlp()
    vector, mean = ForwardGradient("normal", 3), ForwardGradient("normal", 3)
    vector(model, closure)
    first = gradients(model)
    model.zero_grad()
    mean(model, lambda model: closure(model).mean())
    assert_same(gradients(model), first)
    assert vector.last is not None
    assert mean.last is not None
    assert vector.last.value.shape == (5,)
    assert vector.last.per_example_derivatives is not None
    assert vector.last.per_example_derivatives.shape == (3, 5)
    derivatives = vector.last.per_example_derivatives.mean(1)
    torch.testing.assert_close(derivatives, vector.last.directional_derivatives)
    torch.testing.assert_close(mean.last.directional_derivatives, vector.last.directional_derivatives)
    assert mean.last.per_example_derivatives is None
    assert mean.last.value.dim() == 0


def test_the_pure_form_takes_parameters_that_require_gradients_and_leaves_them_alone() -> None:
    params = {name: value.clone().requires_grad_() for name, value in POINT.items()}
    estimate = forward_gradient(quadratic, params)
    assert all(param.grad is None for param in params.values())
    assert not any(value.requires_grad for value in estimate.gradient.values())
    assert_same({name: param.detach() for name, param in params.items()}, POINT, tolerance=0.0)


def test_the_global_random_states_are_left_alone_by_the_pure_form() -> None:
    before, python = torch.get_rng_state(), python_random.getstate()
    forward_gradient(quadratic, POINT, num_directions=3, chunk_size=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert python_random.getstate() == python


@pytest.mark.parametrize("engine", ["func", "dual"])  # a difference of numbers in bfloat16 has no digits left
def test_under_autocast_derivatives_and_gradients_stay_float32(engine: str) -> None:
    model, _ = samples.mlp()
    model.float()

    def closure(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(random(5, 3).float()).square().mean(1)

    expected = exact_gradient(model, lambda model: model(random(5, 3).float()).square().mean(1))
    estimator = ForwardGradient(lambda p, g: {n: v.float() for n, v in orthogonal_basis(p, g).items()}, 26, engine)
    loss = estimator(model, closure)
    assert estimator.last is not None
    assert estimator.last.directional_derivatives.dtype == torch.float32
    torch.testing.assert_close(loss.float(), closure(model).mean().float(), rtol=1e-2, atol=0)
    assert all(param.grad.dtype == torch.float32 for param in model.parameters())
    error = flatten(gradients(model)) - flatten(expected)
    assert error.norm() <= 0.03 * flatten(expected).norm()
