"""Any optimizer of PyTorch, with clipping, takes the estimate as it takes a gradient."""

from __future__ import annotations

import pytest
import samples
import torch
from guard import assert_no_autograd
from samples import assert_same
from torch import Tensor

from fwdgrad import ForwardGradient

LR = 0.05
OPTIMIZERS = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "SGD"])
def test_any_optimizer_and_clipping_do_with_the_estimate_what_they_do_with_that_gradient(name: str) -> None:
    model, closure = samples.mlp()
    other, _ = samples.mlp()
    kind = getattr(torch.optim, name)
    optimizer, expected = kind(model.parameters(), lr=LR), kind(other.parameters(), lr=LR)
    estimator = ForwardGradient("rademacher", 4, optimizer=optimizer)
    start = samples.weights(model)
    for _ in range(3):
        optimizer.zero_grad()
        with assert_no_autograd():
            estimator(model, closure)
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            its.grad = mine.grad.clone()
        norms = [torch.nn.utils.clip_grad_norm_(each.parameters(), 0.1) for each in (model, other)]
        assert norms[0] == norms[1] > 0.1
        optimizer.step()
        expected.step()
    assert_same(samples.weights(model), samples.weights(other), tolerance=0.0)
    assert all(not torch.equal(value, start[name]) for name, value in samples.weights(model).items())


def test_an_optimizer_that_calls_its_closure_may_call_the_estimator_in_it() -> None:
    model, closure = samples.mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    estimator = ForwardGradient("normal", 64)
    before = closure(model).mean().item()

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        estimator.step = 0
        return estimator(model, closure)

    with assert_no_autograd():
        optimizer.step(evaluate)
    assert closure(model).mean().item() < before
