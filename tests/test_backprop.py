"""The gradients that reverse mode leaves behind: taken over where they were made, in memory that nothing else uses."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fwdgrad import Backprop, dual
from fwdgrad.dual.tensor import RULES
from fwdgrad.estimators import backprop

BUFFER = torch.zeros(1, 3)


def doubled(x: Tensor) -> Any:
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(doubled, (x,), x)
    return x * 2


@pytest.fixture
def _rule_with_a_buffer() -> Iterator[None]:
    """Register a rule for ``doubled`` whose transpose writes its result into memory that it keeps."""

    @dual.rule(doubled)
    def rule(x: Tensor) -> Any:
        pull = lambda u: torch.mul(u, 2, out=BUFFER)  # noqa: E731
        return dual.dual(doubled(x), dual.linear_map(lambda t: 2 * t, pull, dual.tangent(x), x))

    yield
    RULES.pop(doubled)


class Two(nn.Module):
    """Two parameters and a loss of them."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.arange(3.0))
        self.q = nn.Parameter(torch.ones(3))
        self.loss = loss

    def forward(self) -> Tensor:
        return self.loss(self.p, self.q)


def gradients(model: nn.Module, engine: str = "tape") -> list[Tensor]:
    Backprop(engine)(model, lambda model: model())
    return [p.grad for p in model.parameters() if p.grad is not None]


def memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def test_a_first_gradient_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    accumulate = backprop._accumulate

    def look(param: Tensor, gradient: Tensor) -> None:
        made.append(memory(gradient))
        accumulate(param, gradient)

    monkeypatch.setattr(backprop, "_accumulate", look)
    p, q = gradients(Two(lambda p, q: (p * q).sum()))
    assert [memory(p), memory(q)] == made
    assert not p._is_view() and not p.requires_grad


@pytest.mark.usefixtures("_rule_with_a_buffer")
@pytest.mark.parametrize(
    "loss",
    [
        lambda p, q: p + q,
        lambda p, q: (p + q).sum(),
        lambda p, q: (p + q + p).exp(),
        lambda p, q: torch.stack([p, q]).view(6),
        lambda p, q: torch.cat([p[:1], q, p[1:]]) ** 2,
        lambda p, q: doubled(p).sum() + q.sum(),
        lambda p, q: doubled(p * doubled(q)).sum(),
    ],
)
def test_gradients_share_memory_with_nothing(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Two(loss)
    expected = gradients(Two(loss), "autograd")
    first = gradients(model)
    kept = [g.clone() for g in first]
    assert len({memory(g) for g in first} | {memory(BUFFER)} | {memory(p) for p in model.parameters()}) == 5
    torch.testing.assert_close(first, expected)
    gradients(model)  # accumulates
    torch.testing.assert_close(first, [2 * g for g in expected])
    model.zero_grad()
    with torch.no_grad():
        model.p.mul_(3)
    first[0].copy_(kept[0])
    torch.testing.assert_close(gradients(model)[1], gradients(_copied(model, loss), "autograd")[1])
    assert torch.equal(first[0], kept[0])  # a gradient that was kept is left alone by later steps


def _copied(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Two:
    copy = Two(loss)
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.usefixtures("_rule_with_a_buffer")
def test_memory_taken_over_without_looking_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backprop, "_is_alone", lambda x: True)
    p, q = gradients(Two(lambda p, q: p + q))
    assert memory(p) == memory(q)
    assert memory(gradients(Two(lambda p, q: doubled(p).sum() + q.sum()))[0]) == memory(BUFFER)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("make", [lambda x: x.squeeze(0), lambda x: x.detach().squeeze(0), lambda x: x[0]])
def test_a_tensor_whose_base_someone_holds_is_not_alone(make: Callable[[Tensor], Tensor], held: bool) -> None:
    base = torch.zeros(1, 3)
    x = make(base)
    if not held:
        del base
    assert backprop._is_alone(x) is not held


def test_a_part_of_its_memory_is_not_alone() -> None:
    assert not backprop._is_alone(torch.zeros(2, 3)[0])
    assert not backprop._is_alone(torch.zeros(1).expand(3))


def test_tied_weights_in_their_layout() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight = nn.Parameter(torch.randn(3, 3).t())
    x = torch.randn(5, 3)
    Backprop("tape")(model, lambda model: model(x).square().mean())
    ours = model[0].weight.grad
    assert ours is not None and ours.stride() == model[0].weight.stride() == (1, 3)
    model.zero_grad()
    Backprop()(model, lambda model: model(x).square().mean())
    torch.testing.assert_close(ours, model[0].weight.grad)
