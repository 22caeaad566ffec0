"""The checks fail where they should: a rule wrong by 0.1 %, K mixed up, an argument forgotten, memory shared."""

import pytest
import torch
from checks import check

from fwdgrad.dual.forms import composite, shift
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import RULES, dual, tangent


@pytest.fixture
def own_rule():
    """Put a rule in the place of torch.sin's, for one test."""
    saved = dict(RULES)
    yield rule(torch.sin)
    RULES.clear()
    RULES.update(saved)


def test_right_rule_passes() -> None:
    check(torch.sin, torch.randn(3, 4, dtype=torch.float64))


def test_rule_wrong_by_a_thousandth_fails(own_rule) -> None:
    own_rule(lambda input: dual(torch.sin(input), 1.001 * tangent(input) * torch.cos(input)))
    for options in ({"differences": False}, {"reverse": False}):
        with pytest.raises(AssertionError, match=r"<u, Jv>|differences"):
            check(torch.sin, torch.randn(3, 4, dtype=torch.float64), **options)


def test_rule_that_mixes_directions_fails(own_rule) -> None:
    own_rule(lambda input: dual(torch.sin(input), tangent(input).flip(0) * torch.cos(input)))
    with pytest.raises(AssertionError):
        check(torch.sin, torch.randn(3, 4, dtype=torch.float64))


def test_rule_that_drops_the_tangent_fails(own_rule) -> None:
    own_rule(lambda input: torch.sin(input))
    with pytest.raises(AssertionError):
        check(torch.sin, torch.randn(3, 4, dtype=torch.float64))


def test_rule_that_hands_on_the_arguments_memory_fails(own_rule) -> None:
    own_rule(lambda input: dual(input + 1, tangent(input)))
    with pytest.raises(AssertionError, match="dual_sharing"):
        check(torch.sin, torch.randn(3, 4, dtype=torch.float64))


def test_shift_leaves_the_leading_dimension_alone() -> None:
    assert [shift(d) for d in (0, 2, -1)] == [1, 3, -1]
    assert composite is not None
