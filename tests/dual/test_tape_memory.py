"""What a tape saves, whether it has changed since, and when it is let go."""

import gc
import weakref
from typing import Any

import pytest
import torch
from test_tape import X, Y, assert_same, randn
from torch import Tensor

from fwdgrad import dual
from fwdgrad.dual.tensor import RULES

DualError = dual.DualError


def test_a_saved_value_that_was_overwritten_is_noticed() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.sin()
        z = y * y
        y.mul_(2)
        return z.sum() + y.sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.func.grad(function)(X)
    text = r"^Tensor.mul .at torch.ops.aten.\w+.*a tensor of shape \(3, 4\) .* version 1, expected 0\); change a clone"
    with pytest.raises(DualError, match=text):
        dual.grad(function)(X)


def test_a_saved_tensor_overwritten_after_the_call_is_noticed_too() -> None:
    weight, mask = Y.clone(), torch.tensor([True, False, True, True])
    _, pull = dual.vjp(lambda x: (x * weight).masked_fill(mask, 0), X)
    assert_same(pull(X), ((X * weight).masked_fill(mask, 0),))
    weight[0] = 1.0
    with pytest.raises(DualError, match=r"changed in place after it was used \(it is at version 1, expected 0"):
        pull(X)


def test_what_is_overwritten_but_not_needed_does_not_matter() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.sin()
        z = y + y
        y.mul_(2)
        y.exp_()
        return (z * y).sum()

    assert_same(dual.grad(function)(X), torch.func.grad(function)(X))


def test_a_tape_is_used_up() -> None:
    _, pull = dual.vjp(lambda x: x.sin() * x, X)
    first = pull(X)
    assert_same(pull(X, retain_graph=False), first)
    with pytest.raises(DualError, match="the tape was used up by an earlier call; pass retain_graph=True to all but"):
        pull(X)


@pytest.fixture
def no_collector() -> Any:
    """Leave it to reference counts to free memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def constants(count: int) -> tuple[list[Tensor], list[weakref.ref[Tensor]]]:
    made = [randn(3, 4, seed=i) for i in range(count)]
    return made, [weakref.ref(x) for x in made]


def alive(references: list[Any]) -> list[bool]:
    return [reference() is not None for reference in references]


def test_the_graph_is_freed_as_it_is_used(no_collector: None) -> None:
    seen: list[list[bool]] = []
    factors, references = constants(4)

    def look(t: Tensor) -> Tensor:
        seen.append(alive(references))
        return t

    @dual.rule(looking)
    def rule(x: Tensor) -> Any:
        return dual.dual(x.clone(), dual.linear_map(lambda t: t, look, dual.tangent(x), x))

    def function(x: Tensor) -> Tensor:
        for factor in factors:
            x = looking(x * factor)
        return x

    try:
        _, pull = dual.vjp(function, X)
        factors.clear()
        assert alive(references) == [True] * 4
        pull(X)
        assert seen == [[True] * 4] * 4
        seen.clear()
        pull(X, retain_graph=False)
        assert seen == [[True] * n + [False] * (4 - n) for n in (4, 3, 2, 1)]
        assert not any(alive(references))
    finally:
        RULES.pop(looking)


def looking(x: Tensor) -> Any:
    if torch.overrides.has_torch_function((x,)):
        return torch.overrides.handle_torch_function(looking, (x,), x)
    return x.clone()


def test_a_tape_that_is_dropped_is_freed(no_collector: None) -> None:
    factors, references = constants(3)
    output, pull = dual.vjp(lambda x: (x * factors[0]).mul_(factors[1]).view(-1)[3:].mul_(factors[2].view(-1)[3:]), X)
    factors.clear()
    assert any(alive(references))
    del output, pull
    assert not any(alive(references))


def test_what_leads_to_no_result_is_not_kept(no_collector: None) -> None:
    factors, references = constants(2)
    output, pull = dual.vjp(lambda x: ((x * factors[0]).sum(), x * factors[1])[1], X)
    factors.clear()
    assert output is not pull and alive(references) == [False, True]


def test_a_gradient_leaves_nothing_behind(no_collector: None) -> None:
    factors, references = constants(2)
    dual.grad(lambda x: ((x * factors[0]).exp() * factors[1]).sum())(X)
    factors.clear()
    assert not any(alive(references))
