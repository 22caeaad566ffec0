"""Activity perturbation: what is shared out, what is allotted, and which layers are perturbed together."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import samples
import torch
import torch.nn.functional as F
from samples import assert_same, exact_gradient, gradients
from torch import Tensor, nn

from fwdgrad import ActivityPerturbation
from fwdgrad.dual import perturb, perturbed
from fwdgrad.estimators.noise import ActivityNoise, BlockNoise, WeightNoise
from fwdgrad.randomness import KeyedGenerator

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 2, 1])


class Signs:
    """Stands in for a generator: hands out given signs, the same to every example."""

    def __init__(self, signs: tuple[int, ...]) -> None:
        self._signs = list(signs)

    def signs(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        batch = len(X)
        taken, self._signs = self._signs[: count // batch], self._signs[count // batch :]
        return torch.tensor(taken, dtype=dtype).repeat(1, batch)


def every_sign(count: int) -> list[Signs]:
    return [Signs(signs) for signs in itertools.product((-1, 1), repeat=count)]


def g() -> Tensor:
    """Return a gradient by the output for each example, (3, 6)."""
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def written_out(noise: ActivityNoise | BlockNoise) -> Tensor:
    tangents = noise.tangents()
    return tangents if isinstance(tangents, Tensor) else tangents.materialize()


@pytest.mark.parametrize("make", [ActivityNoise, BlockNoise])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("active", [None, torch.tensor([1, 0, 1, 1, 0, 1]).bool().repeat(3, 1)], ids=["all", "some"])
def test_over_all_signs_the_mean_is_the_gradient_and_the_second_moment_as_stated(
    make: type[ActivityNoise | BlockNoise], count: int, active: Tensor | None
) -> None:
    gradient = g() if active is None else g() * active
    estimates, moved = [], None
    for signs in every_sign(6):
        noise = make(gradient, count if make is ActivityNoise else 6 // count, active, signs, "z")  # type: ignore[arg-type]
        tangents = written_out(noise)
        moved = tangents.abs()
        estimates.append(noise.estimate((tangents * gradient).sum(2)))
    mean = torch.stack(estimates).mean(0)
    torch.testing.assert_close(mean, gradient, rtol=1e-12, atol=1e-12)
    assert moved is not None
    shares = moved.sum(2) * (moved * gradient).square().sum(2)  # |S_k| |g_{S_k}|^2
    second = torch.stack(estimates).square().sum(2).mean(0)
    torch.testing.assert_close(second, shares.sum(0), rtol=1e-12, atol=1e-12)
    wide = 6 if active is None else 4
    assert moved.sum((0, 2)).tolist() == [wide] * 3  # each output with influence is moved once
    if make is ActivityNoise or active is None:
        assert moved.sum(2).amax() - moved.sum(2).amin() <= 1  # and the shares are even


@pytest.mark.parametrize("make", [ActivityNoise, BlockNoise])
def test_an_estimate_off_by_a_thousandth_fails_that_mean(make: type[ActivityNoise | BlockNoise]) -> None:
    estimates = []
    for signs in every_sign(6):
        noise = make(g(), 3, None, signs, "z")  # type: ignore[arg-type]
        estimates.append(1.001 * noise.estimate((written_out(noise) * g()).sum(2)))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.stack(estimates).mean(0), g(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [ActivityNoise, BlockNoise])
def test_with_a_direction_for_each_output_the_estimate_is_exact(make: type[ActivityNoise | BlockNoise]) -> None:
    noise = make(g(), 6 if make is ActivityNoise else 1, None, KeyedGenerator(0, 0), "z")
    torch.testing.assert_close(noise.estimate((written_out(noise) * g()).sum(2)), g(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 6, 10])
def test_over_all_signs_the_mean_in_weights_is_the_gradient(count: int) -> None:
    layer = samples.seeded(lambda: nn.Linear(4, 2, dtype=torch.float64))
    delta = g()[:, :2]

    def estimate(signs: Signs) -> dict[str, Tensor]:
        taken: list[WeightNoise] = []

        def fn() -> tuple[Tensor, None]:
            y = layer(X).detach()
            taken.append(WeightNoise(layer, X, y, count, None, signs, "w"))  # type: ignore[arg-type]
            return (perturb(y, taken[0].tangents()) * delta).sum(1), None

        derivatives = perturbed(fn)[1]
        return taken[0].gradients(layer, X, derivatives)

    means = [estimate(signs) for signs in every_sign(6)]
    exact = {"weight": delta.T @ X, "bias": delta.sum(0)}
    assert_same({name: torch.stack([m[name] for m in means]).mean(0) for name in exact}, exact)
    if count == 10:
        assert_same(means[0], exact)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(4, 4), nn.Linear(4, 5)
        self.outer, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(x + self.outer(F.relu(self.inner(x))))


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def closure(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), TARGET, reduction="none")


@pytest.mark.parametrize(
    ("make", "groups"),
    [(chain, [["0", "2", "4"]]), (Residual, [["first"], ["inner", "outer", "last"]])],
    ids=["chain", "residual"],
)
def test_layers_are_perturbed_together_where_nothing_goes_around_them(
    make: Callable[[], nn.Module], groups: list[list[str]]
) -> None:
    model = samples.seeded(make).double()
    estimator = ActivityPerturbation(num_directions=8)
    estimator(model, closure)
    assert estimator.plan is not None
    assert [[site.layer for site in group] for group in estimator.plan.groups] == groups
    # With a direction for each output the estimate is exact, whatever is perturbed together.
    assert_same(gradients(model), exact_gradient(model, lambda m: closure(m).mean()), tolerance=1e-10)


@pytest.mark.parametrize(
    ("chunk_size", "groups"),
    [(1, ["0", "2", "4"]), (5, ["0", "2", "4"]), (6, ["02", "4"]), (8, ["02", "4"]), (9, ["024"])],
)
def test_the_estimate_does_not_depend_on_what_is_carried_together(chunk_size: int, groups: list[str]) -> None:
    model = nn.Sequential(*chain(), nn.Dropout(0.3)).double()
    taken = {}
    for size in (None, chunk_size):
        model.zero_grad()
        estimator = ActivityPerturbation(3, allocation="equal", space="activity", chunk_size=size)
        torch.manual_seed(4)
        estimator(model, closure)
        assert estimator.last is not None
        taken[size] = gradients(model), {"derivatives": estimator.last.directional_derivatives}
    assert estimator.plan is not None
    assert {site.count for group in estimator.plan.groups for site in group} == {3}
    assert ["".join(site.layer for site in group) for group in estimator.plan.groups] == groups
    for of_chunks, together in zip(taken[chunk_size], taken[None], strict=True):
        assert_same(of_chunks, together, tolerance=1e-12)  # type: ignore[arg-type]


def test_later_layers_get_more_directions_by_the_root_of_what_is_behind_them() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    by_cost, equal = ActivityPerturbation(4), ActivityPerturbation(4, allocation="equal")
    for estimator in (by_cost, equal):
        estimator(model, closure)
    counts = [[site.count for group in e.plan.groups for site in group] for e in (by_cost, equal)]  # type: ignore[union-attr]
    # Behind the first layer are 64 * 64 products, which its directions share, 64 values of the cost of 64 each to pass
    # through memory, and 10 * (64 + 64) in the last layer; behind the second one, but for its share, 10 * 64:
    # 4 * sqrt(5376 / 640) = 11.6, and 64 outputs in blocks of ceil(64 / 12) = 6 make 11.
    assert counts == [[4, 11, 10], [4, 4, 10]]


@pytest.mark.parametrize("key", ["allocation", "space"])
def test_an_unknown_word_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} must be one of .* got 'nowhere'"):
        ActivityPerturbation(**{key: "nowhere"})


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size must be a positive integer, got 0"):
        ActivityPerturbation(chunk_size=0)
