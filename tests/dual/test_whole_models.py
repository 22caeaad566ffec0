"""Whole models: the directional derivative is autograd's, the value and the buffers are those of a plain pass."""

import copy

import pytest
import torch
from architectures import MODELS, build

import fwdgrad
from fwdgrad.directions import make_direction
from fwdgrad.dual import directional_derivatives
from fwdgrad.engines import Dual, Func
from fwdgrad.functional import FunctionalModel
from fwdgrad.randomness import KeyedGenerator

CASES = [(name, training) for name in MODELS for training in (True, False)]
IDS = [f"{name}-{'train' if training else 'eval'}" for name, training in CASES]


@pytest.mark.parametrize(("name", "training"), CASES, ids=IDS)
def test_directional_derivatives_are_those_of_reverse_mode(name: str, training: bool) -> None:
    model, closure = build(name, training)
    reference = copy.deepcopy(model)
    torch.manual_seed(4)
    expected_value = closure(reference)
    names, parameters = zip(*reference.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(expected_value.mean(), parameters, allow_unused=True), strict=True))
    function = FunctionalModel(model, closure)
    for direction, count in (("normal", 1), ("normal", 3), ("low_rank", 1), ("low_rank", 3)):
        tangents = make_direction(direction).sample(function.params, KeyedGenerator(0, 0, range(count)))
        torch.manual_seed(4)
        value, pushed, buffers = directional_derivatives(function, function.params, tangents, fallback="error")
        torch.testing.assert_close(value, expected_value.detach(), rtol=1e-12, atol=1e-12)
        terms = torch.stack([t.dot(g) for n, t in tangents.items() if (g := gradients[n]) is not None])
        pushed = pushed.mean(1) if pushed.dim() == 2 else pushed
        scale = terms.square().sum(0).sqrt()  # of the terms that add up to it: no credit for cancellation
        assert ((pushed - terms.sum(0)).abs() <= 1e-10 * scale).all(), (pushed, terms.sum(0))
        torch.testing.assert_close(buffers, dict(reference.named_buffers()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "training"), CASES, ids=IDS)
def test_the_gradient_by_the_tape_is_that_of_autograd(name: str, training: bool) -> None:
    results = []
    for engine in ("autograd", "tape"):
        model, closure = build(name, training)
        torch.manual_seed(4)
        before = torch._C._autograd._get_sequence_nr()
        loss = fwdgrad.Backprop(engine)(model, closure)
        assert (torch._C._autograd._get_sequence_nr() == before) is (engine == "tape")
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    (loss, gradients, buffers), (expected, by_autograd, expected_buffers) = results[1], results[0]
    torch.testing.assert_close((loss, buffers), (expected, expected_buffers), rtol=1e-12, atol=1e-12)
    for name, gradient in by_autograd.items():
        scale = 0 if gradient is None else float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9 * scale + 1e-14)


FUNC_CANNOT = {
    "char_gpt": "fused attention",
    "lstm": "gives padding_idx a derivative",
    "lstm_packed": "packed sequences",
    "regularised_mlp": "weight normalisation",
    "transformer": "fused attention",
    "vit": "fused attention",
}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in FUNC_CANNOT])
def test_both_engines_give_the_same_step(name: str) -> None:
    results = []
    for engine in (Dual(fallback="error"), Func()):
        model, closure = build(name, training=True)
        estimator = fwdgrad.ForwardGradient(direction="rademacher", num_directions=2, engine=engine, seed=1)
        torch.manual_seed(4)
        loss = estimator(model, closure)
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["char_gpt", "lstm", "vit", "regularised_mlp"])
def test_a_model_with_dropout_sees_what_a_plain_pass_sees(name: str) -> None:
    model, closure = build(name, training=True)
    torch.manual_seed(9)
    expected = closure(copy.deepcopy(model)).detach().mean()
    state = torch.get_rng_state()
    torch.manual_seed(9)
    loss = fwdgrad.ForwardGradient(direction="low_rank", engine="dual")(model, closure)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
