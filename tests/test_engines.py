"""Every engine computes the same directional derivatives, those of autograd's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import samples
import torch
from samples import assert_same, random
from torch import Tensor

from fwdgrad.directions import DIRECTIONS
from fwdgrad.engines import ENGINES, Engine, FiniteDifference, make_engine
from fwdgrad.functional import FunctionalModel
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import Dense, Tangent

every_engine = pytest.mark.parametrize("name", ENGINES)
TOLERANCE = {"finite_difference": 1e-6}
PARAMS = {"w": random(3, 4), "b": random(3, seed=1), "s": random(seed=2)}


def function(params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return per-example losses of two examples, and something beside them."""
    hidden = (random(2, 4, seed=3) @ params["w"].T + params["b"]).exp()
    return (hidden * params["s"]).sum(1), {"hidden": hidden}


def scalar(params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    losses, aux = function(params)
    return losses.mean(), aux


def dense(count: int, seed: int = 5) -> dict[str, Dense]:
    return {name: Dense(random(count, *param.shape, seed=seed)) for name, param in PARAMS.items()}


def expected_derivatives(tangents: Mapping[str, Tangent]) -> Tensor:
    """Return the derivatives (K, B) of the per-example losses, from their gradients by autograd."""
    params = {name: param.clone().requires_grad_() for name, param in PARAMS.items()}
    rows = []
    for loss in function(params)[0]:
        gradient = dict(zip(params, torch.autograd.grad(loss, list(params.values()), retain_graph=True), strict=True))
        rows.append(torch.stack([tangents[name].dot(gradient[name]) for name in params]).sum(0))
    return torch.stack(rows, 1)


@every_engine
@pytest.mark.parametrize("count", [1, 3])
def test_derivatives_are_inner_products_with_the_gradient(name: str, count: int) -> None:
    engine, tangents, tolerance = make_engine(name), dense(count), TOLERANCE.get(name, 1e-10)
    expected = expected_derivatives(tangents)
    value, derivatives, aux = engine(function, PARAMS, tangents)
    torch.testing.assert_close(derivatives, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(value, function(PARAMS)[0])
    assert_same(aux, function(PARAMS)[1])
    value, derivatives, _ = engine(scalar, PARAMS, tangents)
    torch.testing.assert_close(derivatives, expected.mean(1), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(value, scalar(PARAMS)[0])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(1.001 * derivatives, expected.mean(1), rtol=tolerance, atol=tolerance)


@every_engine
@pytest.mark.parametrize(
    "make", [samples.conv, samples.tied_embedding, samples.dropout], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("direction", ["normal", "low_rank"])
def test_engines_agree_on_modules(name: str, make: Callable[..., tuple], direction: str) -> None:
    model, closure = make()
    fn = FunctionalModel(model, closure)
    tangents = DIRECTIONS[direction]().sample(fn.params, KeyedGenerator(0, 0, range(3)))
    results = []
    for engine in ("func", name):
        torch.manual_seed(0)
        results.append((make_engine(engine)(fn, fn.params, tangents), torch.get_rng_state()))
    (reference, state), (actual, actual_state) = results
    tolerance = TOLERANCE.get(name, 1e-10)
    torch.testing.assert_close(actual.value, reference.value)
    torch.testing.assert_close(actual.derivatives, reference.derivatives, rtol=tolerance, atol=tolerance)
    assert_same(actual.aux, reference.aux)
    assert torch.equal(actual_state, state)


@every_engine
def test_derivatives_are_linear_in_the_direction(name: str) -> None:
    engine, tolerance = make_engine(name), TOLERANCE.get(name, 1e-10)
    u, v = dense(3, seed=5), dense(3, seed=6)
    both = {key: Dense(2.0 * u[key].values - 0.5 * v[key].values) for key in PARAMS}
    parts = [engine(scalar, PARAMS, tangents).derivatives for tangents in (u, v, both)]
    torch.testing.assert_close(parts[2], 2.0 * parts[0] - 0.5 * parts[1], rtol=10 * tolerance, atol=10 * tolerance)


@every_engine
def test_directions_of_one_call_do_not_meet(name: str) -> None:
    engine, tangents = make_engine(name), dense(3)
    together = engine(scalar, PARAMS, tangents).derivatives
    for k in range(3):
        alone = {key: Dense(tangent.values[k : k + 1]) for key, tangent in tangents.items()}
        torch.testing.assert_close(engine(scalar, PARAMS, alone).derivatives, together[k : k + 1], rtol=1e-6, atol=0)


@every_engine
def test_parameters_and_tangents_are_left_as_they_are(name: str) -> None:
    params = {key: param.clone() for key, param in PARAMS.items()}
    tangents = dense(2)
    before = {key: tangent.values.clone() for key, tangent in tangents.items()}
    make_engine(name)(scalar, params, tangents)
    assert_same(params, PARAMS, tolerance=0.0)
    assert_same({key: tangent.values for key, tangent in tangents.items()}, before, tolerance=0.0)


@every_engine
@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_derivatives_are_at_least_float32(name: str, dtype: torch.dtype, expected: torch.dtype) -> None:
    params = {key: param.to(dtype) for key, param in PARAMS.items()}
    tangents = {key: Dense(tangent.values.to(dtype)) for key, tangent in dense(2).items()}
    fn = lambda p: (torch.stack([(value * value).sum() for value in p.values()]).sum(), {})  # noqa: E731
    value, derivatives, _ = make_engine(name)(fn, params, tangents)
    assert value.dtype == dtype
    assert derivatives.dtype == expected


@every_engine
def test_a_loss_without_parameters_has_derivative_zero(name: str) -> None:
    value, derivatives, _ = make_engine(name)(lambda p: (torch.tensor(2.0).double(), {}), PARAMS, dense(3))
    assert value == 2.0
    assert derivatives.tolist() == [0.0, 0.0, 0.0]


def test_central_differences_are_of_second_order() -> None:
    tangents = dense(1)
    exact = make_engine("func")(scalar, PARAMS, tangents).derivatives
    errors = [(FiniteDifference(h)(scalar, PARAMS, tangents).derivatives - exact).abs() for h in (1e-2, 5e-3)]
    torch.testing.assert_close(errors[0] / errors[1], torch.full((1,), 4.0).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e8])
def test_the_default_step_of_central_differences_suits_directions_of_any_size(scale: float) -> None:
    tangents = {name: Dense(scale * tangent.values) for name, tangent in dense(3).items()}
    expected = make_engine("func")(scalar, PARAMS, tangents).derivatives
    actual = make_engine("finite_difference")(scalar, PARAMS, tangents).derivatives
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("step_size", [0, -1e-3, float("nan")])
def test_a_step_size_that_is_not_positive_is_refused(step_size: float) -> None:
    with pytest.raises(ValueError, match="step_size must be positive, got"):
        FiniteDifference(step_size)


@pytest.mark.parametrize("name", ["func", "finite_difference"])
def test_engines_that_cannot_use_per_example_directions_say_so(name: str) -> None:
    tangents = DIRECTIONS["per_example"]().sample(PARAMS, KeyedGenerator(0, 0))
    with pytest.raises(TypeError, match="use engine='dual', or a shared direction such as direction='low_rank'"):
        make_engine(name)(function, PARAMS, tangents)


def test_an_engine_is_a_word_or_an_object() -> None:
    engine: Engine = FiniteDifference(1e-3)
    assert make_engine(engine) is engine
    with pytest.raises(ValueError, match=r"engine must be one of \['func'.*\], got 'fun'. Did you mean 'func'\?"):
        make_engine("fun")
    with pytest.raises(ValueError, match=r"got 'zzz'\.$"):
        make_engine("zzz")
    with pytest.raises(TypeError, match=r"engine must be one of \['func'.*\] or a callable engine, got int"):
        make_engine(3)  # type: ignore[arg-type]
