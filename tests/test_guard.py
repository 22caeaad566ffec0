"""No method but backpropagation uses reverse mode, and the guard that says so catches those that do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import samples
import torch
from guard import ReverseModeError, assert_no_autograd
from methods import METHODS, Method, OneBlock, every_forward_method
from torch import nn
from torch.autograd import grad as imported_by_name
from torch.func import vjp as vjp_imported_by_name

from fwdgrad import Backprop, ForwardGradient, forward_gradient
from fwdgrad.diagnostics import diagnose
from fwdgrad.engines import ENGINES
from fwdgrad.optim import FactoredSGD

WEIGHT = torch.ones(3, requires_grad=True)


def loss(weight: torch.Tensor) -> torch.Tensor:
    return weight.square().sum()


def swallow(offender: Callable[[], object]) -> Callable[[], object]:
    def quiet() -> None:
        with suppress(AssertionError):
            offender()

    return quiet


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("num_directions", [1, 3])
@pytest.mark.parametrize(
    "make", [samples.mlp, samples.dropout, samples.tied, samples.images], ids=lambda make: make.__name__
)
@every_forward_method
def test_no_method_uses_reverse_mode(
    method: Method, make: Callable[..., tuple[nn.Module, samples.Closure]], num_directions: int, chunk_size: int | None
) -> None:
    model, closure = make()
    estimator = method.make(num_directions=num_directions, chunk_size=chunk_size)
    with assert_no_autograd():
        estimator(model, closure)
    assert all(param.grad is not None and not param.grad.requires_grad for param in model.parameters())


@every_forward_method
def test_no_method_uses_reverse_mode_where_gradients_are_enabled_and_a_part_is_frozen(method: Method) -> None:
    model, closure = samples.mlp()
    model[0].requires_grad_(False)
    with assert_no_autograd(), torch.enable_grad():
        method.make()(model, closure)


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_that_require_gradients_get_no_graph(engine: str) -> None:
    model, _ = samples.mlp()
    x = samples.random(5, 3).requires_grad_()
    with assert_no_autograd():
        METHODS[f"forward_gradient-normal-{engine}"].make()(model, lambda model: model(x).square().mean(1))


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_uses_reverse_mode_on_convolutions_batch_norm_and_pooling(engine: str) -> None:
    model, closure = samples.conv()
    method = METHODS[f"forward_gradient-low_rank-{engine}"]
    with assert_no_autograd():
        method.make(num_directions=2)(model, closure)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_pure_form_uses_no_reverse_mode(engine: str) -> None:
    with assert_no_autograd():
        forward_gradient(lambda p: loss(p["w"]), {"w": WEIGHT}, engine=engine)


def test_the_optimizer_step_and_clipping_use_no_reverse_mode() -> None:
    model, closure = samples.mlp()
    optimizer = FactoredSGD(model.parameters(), lr=0.1, weight_decay=0.1)
    estimator = METHODS["forward_gradient-low_rank-func"].make(optimizer=optimizer)
    with assert_no_autograd():
        estimator(model, closure)
        optimizer.scale_grad(1 / optimizer.grad_norm())
        optimizer.step()
        optimizer.zero_grad()


OFFENDERS: dict[str, tuple[Callable[[], object], str]] = {
    "creates a node": (lambda: loss(WEIGHT), "created 2 autograd nodes"),
    "creates a node and detaches": (lambda: (WEIGHT * 2).detach(), "created 1 autograd nodes"),
    "Tensor.backward": (lambda: loss(WEIGHT).backward(), "called Tensor.backward"),
    "autograd.backward": (lambda: torch.autograd.backward(loss(WEIGHT)), "called torch.autograd.backward"),
    "autograd.grad": (lambda: torch.autograd.grad(loss(WEIGHT), WEIGHT), "called torch.autograd.grad"),
    "autograd.grad by name": (lambda: imported_by_name(loss(WEIGHT), WEIGHT), "called torch.autograd.grad"),
    "autograd.functional": (lambda: torch.autograd.functional.vjp(loss, WEIGHT), "called torch.autograd.grad"),
    "func.grad": (lambda: torch.func.grad(loss)(WEIGHT.detach()), "called torch.func.grad"),
    "func.grad_and_value": (lambda: torch.func.grad_and_value(loss)(WEIGHT), "called torch.func.grad_and_value"),
    "func.vjp": (lambda: torch.func.vjp(loss, WEIGHT), "called torch.func.vjp"),
    "func.vjp by name": (lambda: vjp_imported_by_name(loss, WEIGHT), "called torch.func.vjp"),
    "func.jacrev": (lambda: torch.func.jacrev(loss)(WEIGHT), "called torch.func.jacrev"),
    "func.hessian": (lambda: torch.func.hessian(loss)(WEIGHT), "called torch.func.hessian"),
    "the C++ engine": (
        lambda: torch.autograd.Variable._execution_engine.run_backward((WEIGHT.sum(),), (None,), False, False, ()),
        "called the C\\+\\+ engine",
    ),
    "Backprop": (lambda: Backprop()(*samples.mlp()), "called Tensor.backward"),
    "diagnostics": (lambda: diagnose(*samples.mlp(), ForwardGradient()), "called torch.autograd.grad"),
    "swallows the refusal": (swallow(lambda: torch.func.grad(loss)(WEIGHT)), "called torch.func.grad"),
}


@pytest.mark.parametrize(("offender", "text"), OFFENDERS.values(), ids=OFFENDERS)
def test_the_guard_catches(offender: Callable[[], object], text: str) -> None:
    with pytest.raises(ReverseModeError, match=text), assert_no_autograd():
        offender()
    WEIGHT.grad = None


def test_the_guard_lets_forward_mode_pass() -> None:
    ones = torch.ones(3)
    with assert_no_autograd():
        torch.func.jvp(loss, (ones,), (ones,))
        torch.func.jacfwd(loss)(ones)
        with torch.no_grad():
            loss(WEIGHT)


def test_the_guard_puts_everything_back() -> None:
    before = torch.Tensor.backward, torch.autograd.grad, torch.func.grad, torch.autograd.Variable._execution_engine
    with assert_no_autograd():
        assert torch.autograd.grad is not before[1]
    after = torch.Tensor.backward, torch.autograd.grad, torch.func.grad, torch.autograd.Variable._execution_engine
    assert after == before
    assert torch.autograd.grad(loss(WEIGHT), WEIGHT)[0].tolist() == [2, 2, 2]


def test_every_estimator_of_the_package_is_in_the_table() -> None:
    import fwdgrad.estimators

    estimators = [method.make() for method in METHODS.values()]
    made = {type(each.estimator if isinstance(each, OneBlock) else each) for each in estimators}
    exported = [getattr(fwdgrad.estimators, name) for name in fwdgrad.estimators.__all__]
    shapes = {value for value in exported if isinstance(value, type) and hasattr(value, "load_state_dict")}
    assert shapes - {fwdgrad.estimators.Estimator} == made
