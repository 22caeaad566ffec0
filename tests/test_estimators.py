"""What every method promises: tests that run over the whole table of methods."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable

import numpy as np
import pytest
import samples
import torch
from methods import Method, every_method, every_shared_method
from samples import Closure, assert_same, flatten, gradients, trainable
from torch import nn


@every_method
@pytest.mark.parametrize("make", [samples.mlp, samples.dropout], ids=["mlp", "dropout"])
def test_returns_the_detached_loss_of_a_plain_forward_pass(
    method: Method, make: Callable[[], tuple[nn.Module, Closure]]
) -> None:
    model, closure = make()
    torch.manual_seed(1)
    estimator = method.make(num_directions=3)
    loss = estimator(model, closure)
    torch.manual_seed(1)
    losses = closure(model).detach()
    assert not loss.requires_grad
    assert loss.dim() == 0
    torch.testing.assert_close(loss, losses.mean())
    assert estimator.last is not None
    torch.testing.assert_close(estimator.last.value, losses)


@every_method
def test_accumulates_into_grad_as_backward_does(method: Method) -> None:
    model, closure = samples.mlp()
    estimator, parts = method.make(num_directions=2), []
    for _ in range(2):
        model.zero_grad()
        estimator(model, closure)
        parts.append(gradients(model))
    model.zero_grad()
    estimator = method.make(num_directions=2)
    estimator(model, closure)
    estimator(model, closure)
    assert_same(gradients(model), {name: parts[0][name] + parts[1][name] for name in parts[0]})
    if not method.exact:
        assert not torch.equal(flatten(parts[0]), flatten(parts[1]))


@every_method
def test_leaves_parameters_modes_and_requires_grad_as_they_are(method: Method) -> None:
    model, closure = samples.mlp()
    model[0].requires_grad_(False)
    model[-1].eval()
    params = dict(model.named_parameters())
    before = {name: (param.detach().clone(), param.requires_grad) for name, param in params.items()}
    modes = [module.training for module in model.modules()]
    method.make(num_directions=2)(model, closure)
    assert [module.training for module in model.modules()] == modes
    after = dict(model.named_parameters())
    assert all(after[name] is params[name] and param.grad_fn is None for name, param in after.items())
    for name, (value, requires_grad) in before.items():
        assert torch.equal(params[name], value)
        assert params[name].requires_grad == requires_grad


@every_method
def test_frozen_parameters_get_no_gradient_and_may_be_thawed_between_steps(method: Method) -> None:
    model, closure = samples.mlp()
    estimator = method.make()
    model[0].requires_grad_(False)
    estimator(model, closure)
    assert list(gradients(model)) == ["2.weight", "2.bias"]
    assert model[0].weight.grad is None
    assert model[0].bias.grad is None
    model.requires_grad_(True)
    estimator(model, closure)
    assert list(gradients(model)) == list(dict(model.named_parameters()))


@every_shared_method
def test_buffers_end_as_after_one_forward_pass(method: Method) -> None:
    model, closure = samples.batch_norm()
    closure(model)
    expected = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for chunk_size in (None, 1):
        model, closure = samples.batch_norm()
        buffers = dict(model.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        method.make(num_directions=3, chunk_size=chunk_size)(model, closure)
        assert_same(dict(model.named_buffers()), expected)
        assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
        assert not torch.equal(buffers["1.running_mean"], before["1.running_mean"])
        assert buffers["1.num_batches_tracked"] == 1


@every_shared_method
def test_evaluation_mode_leaves_buffers_alone(method: Method) -> None:
    model, closure = samples.batch_norm()
    model.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    method.make(num_directions=2)(model, closure)
    assert_same(dict(model.named_buffers()), before, tolerance=0.0)
    assert not model[1].training


@every_method
def test_a_parameter_that_takes_no_part_in_the_loss(method: Method) -> None:
    model, closure = samples.mlp()
    model.append(nn.Linear(2, 2).double())
    used = model[:3]
    method.make()(model, lambda m: closure(used))
    if method.exact:
        assert model[3].weight.grad is None
    assert all(torch.isfinite(value).all() for value in gradients(model).values())


@every_method
def test_leaves_the_global_random_states_alone(method: Method) -> None:
    model, closure = samples.mlp()
    estimator = method.make(num_directions=3, chunk_size=2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()
    estimator(model, closure)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert python_random.getstate() == before[2]


@every_method
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_dropout_advances_the_global_random_state_as_one_forward_pass_does(
    method: Method, chunk_size: int | None
) -> None:
    model, closure = samples.dropout()
    torch.manual_seed(1)
    closure(model)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    method.make(num_directions=3, chunk_size=chunk_size)(model, closure)
    assert torch.equal(torch.get_rng_state(), expected)


@every_method
def test_the_gradient_of_a_dropout_network_does_not_depend_on_the_chunks(method: Method) -> None:
    model, closure = samples.dropout()
    results = []
    for chunk_size in (None, 1, 3):
        model.zero_grad()
        torch.manual_seed(1)
        method.make(num_directions=4, chunk_size=chunk_size)(model, closure)
        results.append(gradients(model))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@every_method
def test_goes_on_after_a_restart_as_if_it_had_never_stopped(method: Method) -> None:
    model, closure = samples.mlp()
    estimator = method.make(seed=5)
    for _ in range(3):
        estimator(model, closure)
    state = estimator.state_dict()
    other = method.make(seed=7)
    other.load_state_dict(state)
    results = []
    for each in (estimator, other):
        model.zero_grad()
        each(model, closure)
        results.append(gradients(model))
    assert_same(results[0], results[1], tolerance=0.0)


@every_method
def test_every_call_refuses_a_model_with_nothing_to_train(method: Method) -> None:
    model, closure = samples.mlp()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="has no parameter with requires_grad=True, so there is nothing"):
        method.make()(model, closure)
    assert not trainable(model)
