"""What cannot work is refused with its name, what was required, what arrived and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import samples
import torch
from torch import Tensor, nn

from fwdgrad import ActivityPerturbation, Backprop, ForwardGradient, forward_gradient
from fwdgrad.directions import make_direction

MODEL, CLOSURE = samples.mlp()
X = samples.random(5, 3)
ESTIMATORS = [
    ForwardGradient(),
    ForwardGradient(engine="finite_difference"),
    ForwardGradient(engine="dual"),
    Backprop(),
    Backprop(engine="tape"),
]
every_estimator = pytest.mark.parametrize(
    "estimator", ESTIMATORS, ids=["func", "finite_difference", "dual", "backprop", "tape"]
)

LOSSES: dict[str, tuple[Callable[[nn.Module], Any], type[Exception], str]] = {
    "a matrix": (lambda m: m(X), ValueError, r"scalar loss or a vector of per-example losses, .* shape \(5, 2\)"),
    "integers": (lambda m: m(X).argmax(), TypeError, "must return a floating-point loss, got torch.int64"),
    "a number": (lambda m: 1.0, TypeError, "the closure must return a loss tensor, got float"),
    "nothing": (lambda m: None, TypeError, "the closure must return a loss tensor, got NoneType"),
    "a pair": (lambda m: (m(X).mean(), m(X)), TypeError, "the closure must return a loss tensor, got tuple"),
}


@every_estimator
@pytest.mark.parametrize(("closure", "error", "text"), LOSSES.values(), ids=LOSSES)
def test_a_closure_that_returns_no_loss(
    estimator: Any, closure: Callable[[nn.Module], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        estimator(MODEL, closure)
    assert all(param.grad is None for param in MODEL.parameters())


@every_estimator
@pytest.mark.parametrize("model", [lambda x: x, "model", None, nn.Linear])
def test_a_model_that_is_no_module(model: Any, estimator: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got (function|str|NoneType|type)"):
        estimator(model, CLOSURE)


@pytest.mark.parametrize("estimator", [ForwardGradient("per_example", engine="dual"), ActivityPerturbation()])
def test_examples_that_depend_on_each_other(estimator: Any) -> None:
    model = nn.Sequential(nn.Linear(X.shape[1], 3), nn.BatchNorm1d(3)).double()
    closure = lambda model: model(X).square().mean(1)  # noqa: E731
    with pytest.raises(
        ValueError, match="1: BatchNorm in training mode makes each example's loss depend on the others"
    ):
        estimator(model, closure)
    assert all(param.grad is None for param in model.parameters())
    estimator(model.eval(), closure)


def test_a_count_may_be_any_integer_type() -> None:
    assert ForwardGradient(num_directions=np.int64(4)).num_directions == 4


@every_estimator
def test_a_model_without_parameters(estimator: Any) -> None:
    with pytest.raises(ValueError, match="ReLU has no parameter with requires_grad=True, so there is nothing to train"):
        estimator(nn.ReLU(), lambda model: model(X).mean())


@pytest.mark.parametrize("name", ["num_directions", "chunk_size"])
@pytest.mark.parametrize("value", [0, -1, True, False, 2.5, "3", float("nan"), np.float64(2)])
def test_a_count_that_is_no_positive_integer(name: str, value: Any) -> None:
    text = rf"^{name} must be a positive integer, got {value!r}".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=text):
        ForwardGradient(**{name: value})
    with pytest.raises(ValueError, match=text):
        forward_gradient(lambda p: p["w"].sum(), {"w": torch.ones(2)}, **{name: value})


def test_mistyped_words() -> None:
    with pytest.raises(ValueError, match=r"direction must be one of \['normal'.*got 'norml'. Did you mean 'normal'\?"):
        ForwardGradient("norml")
    with pytest.raises(ValueError, match=r"engine must be one of .*, got 'finite_diff'. Did you mean 'finite_diff"):
        ForwardGradient(engine="finite_diff")
    with pytest.raises(ValueError, match=r"direction must be one of .*, got 'zzz'\.$"):
        ForwardGradient("zzz")


def test_a_direction_that_is_nothing_of_the_kind() -> None:
    with pytest.raises(TypeError, match=r"an object with sample\(params, generator\), or such a function; got int"):
        make_direction(3)  # type: ignore[arg-type]


def test_compiling_another_engine() -> None:
    with pytest.raises(ValueError, match="compile=True needs engine='func', got engine='finite_difference'"):
        ForwardGradient(engine="finite_difference", compile=True)


def test_no_parameters_in_the_pure_form() -> None:
    with pytest.raises(ValueError, match="params must have at least one entry, got an empty dict"):
        forward_gradient(lambda p: torch.zeros(()), {})


DRAWN: dict[str, tuple[Callable[[dict[str, Tensor]], Any], type[Exception], str]] = {
    "no dict": (lambda p: list(p.values()), TypeError, "direction draw must return a dict of name -> tensor, got list"),
    "a name missing": (lambda p: {"w": p["w"][None]}, ValueError, r"missing \['b'\], unknown \[\]"),
    "a name too many": (
        lambda p: dict.fromkeys(("w", "b", "c"), p["b"][None]),
        ValueError,
        r"missing \[\], unknown \['c'\]",
    ),
    "no leading K": (
        lambda p: p,
        ValueError,
        r"tangent 'w' must have shape \(1, 2, 3\) \(directions, \*parameter\), got \(2, 3\)",
    ),
    "transposed": (
        lambda p: {"w": p["w"].T[None], "b": p["b"][None]},
        ValueError,
        r"'w' must have shape \(1, 2, 3\) .*, got \(1, 3, 2\)",
    ),
    "another dtype": (
        lambda p: {name: param[None].half() for name, param in p.items()},
        ValueError,
        "tangent 'w' must have dtype torch.float64, got torch.float16",
    ),
}


@pytest.mark.parametrize(("drawn", "error", "text"), DRAWN.values(), ids=DRAWN)
def test_a_function_that_draws_no_direction(
    drawn: Callable[[dict[str, Tensor]], Any], error: type[Exception], text: str
) -> None:
    def draw(params: dict[str, Tensor], generator: Any) -> Any:
        return drawn(params)

    params = {"w": samples.random(2, 3), "b": samples.random(2)}
    with pytest.raises(error, match=text):
        forward_gradient(lambda p: p["w"].sum() + p["b"].sum(), params, direction=draw)


def test_per_example_directions_with_a_scalar_loss() -> None:
    with pytest.raises(ValueError, match=r"need per-example losses: return a vector .* reduction='none'"):
        ForwardGradient("per_example", engine="dual")(MODEL, lambda model: CLOSURE(model).mean())
