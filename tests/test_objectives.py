"""The test functions against what the literature says of them, and against the methods that will descend on them."""

import math

import pytest
import torch

from fwdgrad import forward_gradient
from fwdgrad.objectives import OBJECTIVES, Objective, objective, repeat, rosenbrock, styblinski_tang
from fwdgrad.tangents import Dense

ANY_DIMENSION = [name for name, known in OBJECTIVES.items() if known.max_dim is None]
CASES = [(name, 2) for name in OBJECTIVES] + [(name, 5) for name in ANY_DIMENSION]
SEPARABLE = ["rastrigin", "sphere", "styblinski_tang"]


def points(name: str, dim: int, count: int) -> torch.Tensor:
    """Fixed points around the start, some way apart from every minimum."""
    generator = torch.Generator().manual_seed(dim)
    start = torch.tensor(repeat(OBJECTIVES[name].start, dim), dtype=torch.float64)
    return start + 0.3 * torch.randn(count, dim, generator=generator, dtype=torch.float64)


def gradient(function, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def scaled_basis(scale: float = 1.0):
    """The directions sqrt(d) e_i, whose estimate with K = d is the gradient itself when the scale is 1."""

    def sample(params, generator):
        dim = params["x"].numel()
        return {"x": Dense(scale * math.sqrt(dim) * torch.eye(dim, dtype=params["x"].dtype)[list(generator.indices)])}

    return sample


def over_the_basis(function, x: torch.Tensor, engine: str, scale: float = 1.0) -> torch.Tensor:
    return forward_gradient(
        lambda params: function(params["x"]),
        {"x": x},
        direction=scaled_basis(scale),
        num_directions=len(x),
        engine=engine,
    ).gradient["x"]


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_least_value_is_that_of_the_literature(name, dim):
    expected = -39.16616570377142 * dim if name == "styblinski_tang" else 0.0
    known = OBJECTIVES[name]
    assert known.minimum(dim) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(
        known(known.minimizer_points(dim)), torch.full((len(known.minimizers),), expected, dtype=torch.float64)
    )


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_gradient_vanishes_at_every_minimizer(name, dim):
    for point in OBJECTIVES[name].minimizer_points(dim):
        torch.testing.assert_close(gradient(OBJECTIVES[name], point), torch.zeros(dim).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_no_point_lies_below_the_minimum(name, dim):
    generator = torch.Generator().manual_seed(0)
    sample = 10 * torch.rand(20_000, dim, generator=generator, dtype=torch.float64) - 5
    assert OBJECTIVES[name](sample).min() > OBJECTIVES[name].minimum(dim)


def test_himmelblau_has_four_different_minima():
    minimizers = OBJECTIVES["himmelblau"].minimizer_points(2)
    assert torch.pdist(minimizers).min() > 1


@pytest.mark.parametrize(
    ("name", "point", "expected"),
    [
        ("beale", (0.0, 0.0), 1.5**2 + 2.25**2 + 2.625**2),
        ("rosenbrock", (-1.2, 1.0), 24.2),
        ("rosenbrock", (0.0, 0.0, 2.0), 1 + 1 + 100 * 4),
        ("himmelblau", (0.0, 0.0), 170.0),
        ("ackley", (1.0, 1.0, 1.0), 20 * (1 - math.exp(-0.2))),
        ("rastrigin", (0.5, 1.0), 0.25 + 20 + 1),
        ("sphere", (3.0, -4.0), 25.0),
        ("styblinski_tang", (1.0, 0.0), -5.0),
    ],
)
def test_values_computed_by_hand(name, point, expected):
    assert OBJECTIVES[name](torch.tensor(point, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_a_batch_is_its_points(name, dim):
    batch = points(name, dim, 6).view(2, 3, dim)
    values = OBJECTIVES[name](batch)
    assert values.shape == (2, 3)
    one_by_one = torch.stack([OBJECTIVES[name](x) for x in batch.view(-1, dim)])
    torch.testing.assert_close(values.view(-1), one_by_one)


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_functions_are_sums_over_coordinates(name):
    x = points(name, 7, 1)[0]
    torch.testing.assert_close(OBJECTIVES[name](x), torch.stack([OBJECTIVES[name](c) for c in x.split(1)]).sum())


def test_rosenbrock_chains_its_planes():
    x = points("rosenbrock", 4, 1)[0]
    torch.testing.assert_close(rosenbrock(x), sum(rosenbrock(x[i : i + 2]) for i in range(3)))


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_derivatives_of_both_modes_agree_with_differences(name, dim):
    x = points(name, dim, 1)[0].requires_grad_()
    assert torch.autograd.gradcheck(OBJECTIVES[name], x, check_forward_ad=True)


@pytest.mark.parametrize("engine", ["func", "dual"])
@pytest.mark.parametrize(("name", "dim"), CASES)
def test_forward_gradient_over_the_coordinate_basis_is_the_gradient(name, dim, engine):
    x = points(name, dim, 1)[0]
    torch.testing.assert_close(over_the_basis(OBJECTIVES[name], x, engine), gradient(OBJECTIVES[name], x))


@pytest.mark.parametrize("engine", ["func", "dual"])
@pytest.mark.parametrize(("name", "dim"), CASES)
def test_forward_gradient_is_zero_at_the_minimum(name, dim, engine):
    x = OBJECTIVES[name].minimizer_points(dim)[0]
    torch.testing.assert_close(
        over_the_basis(OBJECTIVES[name], x, engine), torch.zeros(dim).double(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("engine", ["func", "dual"])
def test_a_basis_longer_by_a_thousandth_is_noticed(engine):
    x = points("beale", 2, 1)[0]
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(
            over_the_basis(OBJECTIVES["beale"], x, engine, scale=1.001), gradient(OBJECTIVES["beale"], x)
        )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("beale", (3,), "beale needs dimension 2, got 3"),
        ("himmelblau", (5, 1), "himmelblau needs dimension 2, got 1"),
        ("rosenbrock", (1,), "rosenbrock needs dimension at least 2, got 1"),
        ("sphere", (4, 0), "sphere needs dimension at least 1, got 0"),
        ("sphere", (), r"sphere takes a tensor of shape \(d,\) or \(..., d\), got shape \(\)"),
    ],
)
def test_a_point_of_another_dimension_is_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name](torch.zeros(shape))


def test_a_list_is_refused():
    with pytest.raises(ValueError, match="sphere takes a tensor"):
        OBJECTIVES["sphere"]([1.0, 2.0])


def test_own_functions_are_decorated_like_the_shipped_ones():
    @objective(minimizers=[(1.0, 2.0)], start=(0.0,), min_dim=2)
    def tilted(x):
        """Return something."""
        return ((x - torch.tensor(repeat((1.0, 2.0), x.shape[-1]))) ** 2).sum(-1) - 3

    assert isinstance(tilted, Objective)
    assert (tilted.name, tilted.__doc__) == ("tilted", "Return something.")
    assert tilted.minimum(3) == -3
    assert tilted.minimizer_points(3).tolist() == [[1.0, 2.0, 1.0]]


def test_without_known_minimizers_there_is_no_minimum():
    assert Objective(torch.sum, "sum").minimum(3) is None
    assert styblinski_tang.minimum(1) is not None
