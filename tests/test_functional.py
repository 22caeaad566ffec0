"""The closure may use the model in any way, and the model is left as an ordinary step would leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import samples
import torch
import torch.nn.functional as F
from samples import assert_same, exact_gradient, flatten, gradients, orthogonal_basis, random, seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fwdgrad import ForwardGradient
from fwdgrad.engines import ENGINES
from fwdgrad.functional import FunctionalModel

every_engine = pytest.mark.parametrize("engine", ENGINES)
TOLERANCE = {"finite_difference": 1e-6}
X = random(4, 3)


class Parts(nn.Module):
    """A model with methods of its own, called with keywords, that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
        self.scale = nn.Parameter(torch.tensor(1.5))

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encoder(x)) * self.scale

    def forward(self, inputs: Tensor, *, labels: Tensor | None = None) -> dict[str, Any]:
        hidden = self.encode(inputs)
        logits = {name: head(hidden) for name, head in self.heads.items()}
        return {"logits": logits, "loss": None if labels is None else F.cross_entropy(logits["a"], labels)}


class Softplus(nn.Module):
    """A parametrisation by a smooth function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)


class Rebinding(nn.Module):
    """Updates its buffer by assignment rather than in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("ema", torch.zeros(2))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.ema = 0.9 * self.ema + 0.1 * y.detach().mean(0)
        self.calls += 1
        return y


def parametrized() -> nn.Module:
    layer = nn.Linear(3, 2)
    parametrize.register_parametrization(layer, "weight", Softplus())
    return layer


def square(model: nn.Module) -> Tensor:
    return model(X).square().mean()


LABELS = torch.tensor([0, 1, 1, 0])
CLOSURES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "keywords and a dict": (Parts, lambda m: m(inputs=X, labels=LABELS)["loss"]),
    "a method": (Parts, lambda m: m.encode(X).square().mean()),
    "submodules": (Parts, lambda m: m.heads["b"](m.encoder(X).sin()).square().mean()),
    "several calls": (Parts, lambda m: (m(X)["logits"]["a"] * m(X.flip(0))["logits"]["b"]).mean()),
    "a parameter read": (Parts, lambda m: m.encode(X).mean() + 0.1 * sum(p.square().sum() for p in m.parameters())),
    "a detached part": (Parts, lambda m: (m.encode(X) * m.encode(X).detach()).mean()),
    "parametrised weight": (parametrized, square),
    "orthogonal weight": (lambda: parametrizations.spectral_norm(nn.Linear(3, 2)).eval(), square),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU()), square),
    "no dimensions": (Parts, lambda m: m.scale * m.scale),
}


@every_engine
@pytest.mark.parametrize(("make", "closure"), CLOSURES.values(), ids=CLOSURES)
def test_gradient_is_exact_however_the_closure_uses_the_model(
    engine: str, make: Callable[[], nn.Module], closure: samples.Closure
) -> None:
    if engine == "finite_difference" and closure is CLOSURES["a detached part"][1]:
        pytest.skip("a finite difference moves detached parts too")
    model = seeded(make)
    exact = exact_gradient(model, closure)
    ForwardGradient(orthogonal_basis, len(flatten(exact)), engine)(model, closure)
    assert_same(gradients(model), exact, TOLERANCE.get(engine, 1e-10))


def test_weight_norm_is_exact_by_finite_differences() -> None:
    model = seeded(lambda: parametrizations.weight_norm(nn.Linear(3, 2)))
    exact = exact_gradient(model, square)
    ForwardGradient(orthogonal_basis, len(flatten(exact)), "finite_difference")(model, square)
    assert_same(gradients(model), exact, 1e-6)


def test_of_tied_weights_a_gradient_of_one_use_alone_would_be_noticed() -> None:
    model, closure = samples.tied_embedding()
    exact = exact_gradient(model, closure)
    tokens = torch.tensor([0, 1, 2, 1])

    def one_use(model: nn.Module) -> Tensor:
        hidden = torch.tanh(model.embed(tokens))
        return F.cross_entropy(hidden @ model.out.weight.detach().T, tokens.roll(1))

    ForwardGradient(orthogonal_basis, 9)(model, one_use)
    with pytest.raises(AssertionError):
        assert_same(gradients(model), exact, 1e-3)


def test_weights_may_be_tied_and_untied_between_steps() -> None:
    model, closure = samples.tied()
    estimator = ForwardGradient(orthogonal_basis, 9)
    estimator(model, closure)
    model.zero_grad()
    model.second.weight = nn.Parameter(random(3, 3, seed=8))
    exact, estimator.num_directions, estimator.chunk_size = exact_gradient(model, closure), 18, 18
    estimator(model, closure)
    assert_same(gradients(model), exact, 1e-10)
    model.zero_grad()
    model.second.weight = model.first.weight
    exact, estimator.num_directions = exact_gradient(model, closure), 9
    estimator(model, closure)
    assert_same(gradients(model), exact, 1e-10)


def test_one_estimator_may_serve_several_models() -> None:
    estimator = ForwardGradient("normal", 2, seed=1)
    for make in (samples.mlp, samples.tied, samples.mlp):
        model, closure = make()
        other, _ = make()
        estimator.step = 0
        estimator(model, closure)
        ForwardGradient("normal", 2, seed=1)(other, closure)
        assert_same(gradients(model), gradients(other), tolerance=0.0)


@every_engine
@pytest.mark.parametrize("num_directions", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_buffers_that_are_assigned_end_as_after_one_forward_pass(
    engine: str, num_directions: int, chunk_size: int | None
) -> None:
    model, expected = seeded(Rebinding), seeded(Rebinding)
    expected(X)
    ForwardGradient("normal", num_directions, engine, chunk_size)(model, square)
    assert_same(dict(model.named_buffers()), dict(expected.named_buffers()))
    assert model.calls == 1
    assert not any(buffer.requires_grad for buffer in model.buffers())


@every_engine
def test_what_the_closure_keeps_can_be_used_afterwards(engine: str) -> None:
    model, kept = seeded(lambda: nn.Linear(3, 2)), []

    def closure(model: nn.Module) -> Tensor:
        kept.append(model(X))
        return kept[-1].square().mean()

    ForwardGradient("normal", 3, engine)(model, closure)
    torch.testing.assert_close(kept[0].detach().clone(), model(X).detach(), check_layout=False)


@every_engine
def test_a_closure_that_raises_leaves_the_model_as_it_was(engine: str) -> None:
    model, _ = samples.batch_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    params = dict(model.named_parameters())

    def closure(model: nn.Module) -> Tensor:
        model(random(5, 3))
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        ForwardGradient(engine=engine)(model, closure)
    assert_same(dict(model.state_dict()), before, tolerance=0.0)
    assert all(param is params[name] and param.grad is None for name, param in model.named_parameters())


def test_the_function_is_pure() -> None:
    model, closure = samples.batch_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    function = FunctionalModel(model, closure)
    moved = {name: param + 1 for name, param in function.params.items()}
    first, second = function(moved), function(moved)
    assert torch.equal(first[0], second[0])
    assert_same(first[1], second[1], tolerance=0.0)
    assert_same(dict(model.state_dict()), before, tolerance=0.0)
    assert not torch.equal(first[0], function(function.params)[0])
    function.write_buffers(first[1])
    assert_same(dict(model.named_buffers()), first[1], tolerance=0.0)


@every_engine
def test_a_module_registered_under_two_names_keeps_its_parameters(engine: str) -> None:
    layer = nn.Linear(3, 3).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    plain = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3).double())
    plain[2].weight, plain[2].bias = layer.weight, layer.bias
    params = dict(model.named_parameters())

    def closure(model: nn.Module) -> Tensor:
        return model(X[:, :3]).square().mean()

    for step in range(2):
        twice, tied = (ForwardGradient("normal", 2, engine, seed=step) for _ in range(2))
        twice(model, closure)
        tied(plain, closure)
        assert torch.equal(twice.last.directional_derivatives, tied.last.directional_derivatives)
        assert all(param is params[name] for name, param in model.named_parameters())
