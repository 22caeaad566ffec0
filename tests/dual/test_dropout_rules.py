"""Dropout: the value of a plain pass under the same seed, the tangent through the same mask, one draw for both."""

import pytest
import torch
import torch.nn.functional as F
from checks import check, directions

FUNCTIONS = [
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def seeded(function):
    def run(*args):
        torch.manual_seed(3)
        return function(*args)

    return run


def shape_of(function) -> tuple[int, ...]:
    return {F.dropout1d: (6, 5, 4), F.dropout3d: (4, 5, 2, 3, 2)}.get(function, (4, 5, 3, 2))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_dropout(function, p: float, inplace: bool) -> None:
    x = randn(*shape_of(function))
    check(seeded(lambda x: function(x * 1, p, training=True, inplace=inplace)), x)
    check(seeded(lambda x: function(x * 1, p, training=False, inplace=inplace)), x)


@pytest.mark.parametrize("function", [*FUNCTIONS, F.rrelu], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_generator_are_those_of_a_plain_pass(function, dtype: torch.dtype) -> None:
    x = randn(*shape_of(function)).to(dtype)
    layouts = [x, x.transpose(0, 1), x.to(memory_format=torch.channels_last) if x.dim() == 4 else x]
    for y in layouts:
        torch.manual_seed(5)
        expected, after = function(y, training=True), torch.get_rng_state()
        torch.manual_seed(5)
        (value,), _ = directions(lambda y: function(y, training=True), (y,), (torch.ones(3, *y.shape, dtype=dtype),))
        assert torch.equal(value, expected)
        assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_rrelu(training: bool, inplace: bool) -> None:
    check(seeded(lambda x: F.rrelu(x * 1, 0.1, 0.37, training, inplace)), randn(5, 4))


@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_softmax(hard: bool) -> None:
    check(seeded(lambda x: F.gumbel_softmax(x, 0.7, hard)), randn(5, 4), differences=not hard)
